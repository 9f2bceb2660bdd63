"""Synthetic defects in photos, and their scores."""

import numpy as np
import pytest
from PIL import Image

from helpers.good_photos import good_photo, write_photos, write_tiny_checkpoint
from vip2clip_hf import AnomalyDetectionPipeline, ReferenceBank
from vip2clip_hf.calibration.pasting import DEFECTS, paste_defect
from vip2clip_hf.calibration.synthetic_defects import MAX_PHOTOS, SIZES
from vip2clip_hf.models.vip2clip.pipeline_steps_vip2clip import with_references
from vip2clip_hf.models.vip2clip.reference_left_out_vip2clip import hide_photo
from vip2clip_hf.references.photos import list_photos
from vip2clip_hf.references.synthetic_defects import score_changed_references


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
    return AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size", [(64, 48), (40, 300), (16, 16), (500, 400)])
def test_only_the_marked_pixels_change(defect, size):
    photo = good_photo(0, size)
    for number in range(8):
        length = SIZES[0] + (SIZES[1] - SIZES[0]) * number / 7
        changed, mask = paste_defect(np.random.default_rng(number), photo, defect, length)
        different = (np.asarray(changed) != np.asarray(photo)).any(axis=-1)
        assert changed.size == photo.size
        assert mask.shape == different.shape
        assert mask.any()
        assert not (different & ~mask).any()
        rows, columns = np.nonzero(mask)
        extent = max(np.ptp(rows), np.ptp(columns)) / min(size)
        assert extent <= 1.6 * length + 2 / min(size)
        again, _ = paste_defect(np.random.default_rng(number), photo, defect, length)
        assert again.tobytes() == changed.tobytes()


def test_defects_are_visible():
    photo = Image.new("RGB", (80, 80), (128, 128, 128))
    for defect in ("scratch", "blob", "cut_paste"):
        changed, mask = paste_defect(np.random.default_rng(1), photo, defect, 0.2)
        difference = np.abs(np.asarray(changed, dtype=int) - 128)[mask].mean()
        assert difference > 10
    with pytest.raises(ValueError, match="defect is 'hole'; expected one of scratch"):
        paste_defect(np.random.default_rng(0), photo, "hole", 0.1)


def test_a_photo_is_not_compared_with_itself(detector, tmp_path):
    folder = write_photos(tmp_path / "good", 6)
    bank = ReferenceBank.from_images(detector.model, detector.image_processor, folder)
    left_out = {one.photo.name: one.score for one in bank.left_out()}
    for number, photo in enumerate(bank.photos):
        score = with_references(detector, hide_photo(bank, number)).decision_map(folder / photo.name)["score"]
        assert score == pytest.approx(left_out[photo.name], abs=2e-3)  # features of the bank are float16
        assert score > with_references(detector, bank).decision_map(folder / photo.name)["score"]
    assert bank.checksum() == ReferenceBank.from_images(detector.model, detector.image_processor, folder).checksum()
    with pytest.raises(ValueError, match="All references are hidden"):
        hide_photo(bank.without([photo.name for photo in bank.photos[1:]]), 0)


def test_scores(detector, tmp_path):
    photos = list_photos(write_photos(tmp_path / "good", 8))
    bank = ReferenceBank.from_images(detector.model, detector.image_processor, tmp_path / "good")
    found = score_changed_references(detector, bank, photos, seed=3)
    assert len(found) == MAX_PHOTOS
    assert {one.name for one in found} == {photo.name for photo in photos}
    for defect in DEFECTS:  # all sizes of each kind
        sizes = [one.size for one in found if one.defect == defect]
        assert min(sizes) < SIZES[0] + 0.03
        assert max(sizes) > SIZES[1] - 0.03
    again = score_changed_references(detector, bank, photos, seed=3)
    assert [(one.score, one.peak) for one in found] == [(one.score, one.peak) for one in again]
    other = score_changed_references(detector, bank, photos, seed=4)
    assert [one.score for one in found] != [one.score for one in other]
    large = [one.score for one in found if one.size > 0.12]
    assert np.mean(large) > np.mean([one.score for one in bank.left_out()])
    assert len(score_changed_references(detector, bank, photos[:2])) == 8
    assert score_changed_references(detector, bank, []) == []
