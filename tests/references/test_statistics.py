"""Thresholds from few photos: rates, the range of the true rate, outliers, and the split of many photos."""

import numpy as np
import pytest
from scipy import stats

from vip2clip_hf.calibration.rates import alarms_allowed, beta_quantile, choose_rate, rate_interval, smallest_rate
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold, min_calibration_images
from vip2clip_hf.references.outliers import find_outliers
from vip2clip_hf.references.photos import Photo, split_photos, without_masks
from vip2clip_hf.references.thresholds import deciding_photos


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 20), (5, 96), (2, 3), (30, 7), (490, 9311)])
def test_beta_quantile(first, second):
    for probability in (0.001, 0.05, 0.5, 0.95):
        expected = stats.beta.ppf(probability, first, second)
        assert beta_quantile(probability, first, second) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_smallest_rate_is_possible_and_smallest():
    for count in range(1, 400):
        rate = smallest_rate(count)
        assert min_calibration_images(rate) <= count
        assert min_calibration_images(rate - 0.0002) > count or rate < 0.0003


@pytest.mark.parametrize(
    ("count", "rate"), [(19, 0.05), (20, 0.05), (100, 0.05), (5, 0.1667), (99, 0.01), (250, 0.02)]
)
def test_the_threshold_is_the_score_of_the_last_deciding_photo(count, rate):
    scores = np.random.default_rng(count).uniform(size=count)
    values = {f"{number}": score for number, score in enumerate(scores)}
    threshold = conformal_threshold(scores, rate)
    names = deciding_photos(values, rate)
    assert len(names) == alarms_allowed(count, rate)
    assert values[names[-1]] == threshold
    assert all(values[name] >= threshold for name in names)
    assert (scores > threshold).sum() == len(names) - 1


def test_the_interval_contains_the_true_rate_in_nine_of_ten_cases():
    rng = np.random.default_rng(0)
    for count, rate in ((20, 0.05), (100, 0.05), (9, 0.1)):
        low, high = rate_interval(count, rate)
        # Of uniform scores, the fraction above a threshold is 1 - threshold.
        true = np.array([1 - conformal_threshold(rng.uniform(size=count), rate) for _ in range(2000)])
        assert np.mean((true >= low) & (true <= high)) == pytest.approx(0.9, abs=0.025)
        assert np.mean(true) <= rate * 1.05
    assert rate_interval(20, 0.05) == pytest.approx((0.0026, 0.1391), abs=1e-4)


def test_choose_rate():
    said = []
    assert choose_rate(19, None, said.append) == 0.05
    assert not said
    assert choose_rate(18, None, said.append) == smallest_rate(18)
    assert "at least 19" in said.pop()
    assert choose_rate(99, 0.01, said.append) == 0.01
    with pytest.raises(ValueError, match="at least 99 photos of good parts, found 98"):
        choose_rate(98, 0.01, said.append)
    assert not said


@pytest.mark.parametrize("count", [4, 5, 8, 20, 200])
def test_an_outlier_is_found(count):
    rng = np.random.default_rng(count)
    logits = dict(zip(map(str, range(count)), rng.normal(-2, 0.3, count)))
    scores = {name: 1 / (1 + np.exp(-value)) for name, value in logits.items()}
    assert find_outliers(scores) == []
    if count > 5:
        assert find_outliers({**scores, "1": 0.999, "2": 0.99}) == ["1", "2"]
    assert find_outliers({**scores, "1": 1.0}) == ["1"]


def test_few_or_equal_photos_have_no_outliers():
    assert find_outliers({"a": 0.1, "b": 0.1, "c": 1.0}) == []
    assert find_outliers(dict.fromkeys("abcdef", 0.3)) == []
    # Hardly different: the spread of the rule is the least.
    assert find_outliers({"a": 0.3, "b": 0.3, "c": 0.3, "d": 0.3, "e": 0.4}) == []


def test_false_outliers_are_rare():
    rng = np.random.default_rng(1)
    for count in (5, 10, 20, 50):
        logits = rng.normal(-2, 1.0, (500, count))
        flagged = [bool(find_outliers(dict(enumerate(1 / (1 + np.exp(-row)))))) for row in logits]
        assert np.mean(flagged) < 0.1, count


@pytest.mark.parametrize("count", [1, 200, 201, 399, 1000, 10_000])
def test_split(count):
    photos = [Photo(str(number), number) for number in range(count)]
    references, others = split_photos(photos)
    assert sorted([*references, *others], key=lambda photo: photo.source) == photos
    assert [photo.source for photo in references] == sorted(photo.source for photo in references)
    if count <= 200:
        assert not others
    else:
        assert len(references) == min(200, count // 2)
        gaps = np.diff([photo.source for photo in references])
        assert gaps.max() - gaps.min() <= 1  # spread over all of them


def test_masks_are_left_out():
    names = ["crack/1.png", "crack/1_mask.png", "masks/crack/1.png", "wrong_label.png", "label.png"]
    photos, masks = without_masks([Photo(name, name) for name in names])
    assert masks == ["crack/1_mask.png", "masks/crack/1.png"]
    assert [photo.name for photo in photos] == ["crack/1.png", "wrong_label.png", "label.png"]
    assert without_masks([Photo("masks/1.png", 1)]) == ([Photo("masks/1.png", 1)], [])
