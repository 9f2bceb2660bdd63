"""False alarms of thresholds from references that are compared with each other, by simulation."""

import numpy as np
import pytest
import torch

from vip2clip_hf import ReferenceBank
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold
from vip2clip_hf.models.vip2clip.reference_distances_vip2clip import nearest_distances, normalized
from vip2clip_hf.models.vip2clip.reference_records_vip2clip import ReferenceOptions, ReferencePhoto
from vip2clip_hf.models.vip2clip.reference_rule_vip2clip import top_mean
from vip2clip_hf.models.vip2clip.reference_search_vip2clip import left_out_distances
from vip2clip_hf.references.good_scores import left_out_scores
from vip2clip_hf.references.rates import smallest_rate


GRID, WIDTH = 2, 6


def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (count, 1, patches, width), zero-shot logits and maps of photos of a product: parts differ, and their
    patches differ less."""
    parts = torch.randn(count, 1, 1, WIDTH, generator=generator)
    patches = 0.5 * torch.randn(count, 1, GRID * GRID, WIDTH, generator=generator)
    logits = 0.3 * torch.randn(count, generator=generator) - 1
    maps = torch.rand(count, GRID, GRID, generator=generator) * 0.2
    return normalized(3 * torch.eye(WIDTH)[0] + parts + patches).half(), logits, maps


def simulate(count: int, generator: torch.Generator) -> tuple[float, float, float, float]:
    """Image threshold and score, pixel threshold and largest value of the map, of a new photo."""
    features, logits, maps = draw(count + 1, generator)
    patches, numbers = GRID * GRID, torch.arange(count, dtype=torch.int32)
    rows, row_photo = features[:count, 0].flatten(0, 1)[None], numbers.repeat_interleave(patches)
    bank = ReferenceBank(
        rows, row_photo, [ReferencePhoto(str(number), str(number), 8, 8) for number in range(count)],
        numbers, logits[:count], maps[:count],
        left_out_distances(features[:count], numbers, rows, row_photo),
        ReferenceOptions(), {"config": {"image_size": 8, "smoothing_sigma": 1.0}},
    )  # fmt: skip
    scores, peaks = left_out_scores(bank)
    rate = smallest_rate(count)
    distances = bank.maps(nearest_distances(features[count].float(), rows.float()).mean(0).view(1, GRID, GRID))
    score = bank.combined_scores(top_mean(distances), logits[count:])
    zero_shot = torch.nn.functional.interpolate(maps[None, count:], size=8, mode="bilinear")[0]
    peak = bank.combined_maps(distances, zero_shot).max()
    return (
        conformal_threshold(list(scores.values()), rate), float(score),
        conformal_threshold(list(peaks.values()), rate), float(peak),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "draws"),
    [(10, 150), *(pytest.param(count, 2000, marks=pytest.mark.slow) for count in (10, 20, 50))],
)
def test_false_alarms(count, draws):
    """About the rate of new photos of the product are above the threshold: not more, and not far fewer."""
    generator = torch.Generator().manual_seed(count)
    found = np.array([simulate(count, generator) for _ in range(draws)])
    rate = smallest_rate(count)
    error = np.sqrt(rate * (1 - rate) / draws)
    alarms = np.mean(found[:, 1] > found[:, 0])
    assert rate / 3 < alarms <= rate + 3 * error
    assert np.mean(found[:, 3] > found[:, 2]) <= rate + 3 * error
