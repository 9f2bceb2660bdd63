"""Thresholds from left-out references keep the false-alarm rate: simulated photos, scored by a bank."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vip2clip_hf import ReferenceBank
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold, region_score
from vip2clip_hf.models.vip2clip.reference_records_vip2clip import ReferenceOptions, ReferencePhoto
from vip2clip_hf.models.vip2clip.reference_rule_vip2clip import top_mean
from vip2clip_hf.models.vip2clip.reference_search_vip2clip import left_out_distances


GRID, WIDTH, LAYERS, SIDE = 3, 6, 2, 12
FINGERPRINT = {"config": {"image_size": SIDE, "smoothing_sigma": 1.0}, "dtype": "float32"}


class Photos:
    """Normal photos of a part: features around a prototype for each place, with an effect of the whole photo, and
    zero-shot results that have nothing to do with them."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        prototype = rng.standard_normal((1, LAYERS, GRID**2, WIDTH))
        whole = rng.standard_normal((count, LAYERS, 1, WIDTH)) * rng.exponential(0.3, (count, 1, 1, 1))
        noise = rng.standard_normal((count, LAYERS, GRID**2, WIDTH)) * 0.3
        self.features = F.normalize(torch.from_numpy(prototype + whole + noise).float(), dim=-1)
        self.logits = torch.from_numpy(rng.standard_normal(count) * 0.6).float()
        self.maps = torch.from_numpy(rng.uniform(0.2, 0.8, (count, GRID, GRID))).float()

    def bank(self, count: int) -> ReferenceBank:
        views = self.features[:count].half()
        rows = torch.cat(list(views), dim=1)
        photo, row_photo = torch.arange(count).int(), torch.arange(count).int().repeat_interleave(GRID**2)
        return ReferenceBank(
            rows, row_photo, [ReferencePhoto(str(number), str(number), SIDE, SIDE) for number in range(count)],
            photo, self.logits[:count], self.maps[:count], left_out_distances(views, photo, rows, row_photo),
            ReferenceOptions(), FINGERPRINT,
        )  # fmt: skip

    def scores(self, bank: ReferenceBank, start: int) -> tuple[np.ndarray, np.ndarray]:
        distances = bank.distances(F.pad(self.features[start:], (0, 0, 0, 0, 0, 1)), torch.nn.Identity())
        maps = bank.maps(distances)
        zero_shot = bank.maps(self.maps[start:])
        peaks = bank.combined_maps(maps, zero_shot).flatten(1).amax(dim=1)
        return bank.combined_scores(top_mean(maps), self.logits[start:]).numpy(), peaks.numpy()


def coverage(count: int, draws: int, others: int = 10) -> tuple[float, float, float]:
    """Return the rate of the thresholds, and the mean rates of false alarms of images and of maps."""
    rate, found = math.ceil(1e4 * max(0.05, 1 / (count + 1))) / 1e4, []
    for seed in range(draws):
        photos = Photos(np.random.default_rng([seed, count]), count + others)
        bank = photos.bank(count)
        left_out = list(bank.left_out())
        image = conformal_threshold([one.score for one in left_out], rate)
        pixel = conformal_threshold([region_score(one.anomaly_map) for one in left_out], rate)
        scores, peaks = photos.scores(bank, count)
        found.append([(scores > image).mean(), (peaks > pixel).mean()])
    return rate, *np.mean(found, axis=0).tolist()


@pytest.mark.parametrize(
    ("count", "draws"),
    [(10, 30), (20, 20), *(pytest.param(count, 2000, marks=pytest.mark.slow) for count in (10, 20, 30, 50))],
)
def test_false_alarms_of_left_out_thresholds(count, draws):
    rate, images, maps = coverage(count, draws)
    # The rate of one draw is Beta distributed with a standard deviation of about that of the rate itself.
    tolerance = 3 * math.sqrt(rate * (1 - rate) * (1 / 10 + 1 / count) / draws)
    assert images <= rate + tolerance
    assert maps <= rate + tolerance
    assert images >= rate / 4  # the thresholds are not useless either
    assert maps >= rate / 4
