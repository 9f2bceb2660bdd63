"""Thresholds, p-values and regions of synthetic scores and maps."""

import gc
import json
import math
import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import ndimage

from vip2clip_hf.models.vip2clip import decision_vip2clip as core
from vip2clip_hf.models.vip2clip.decision_config_vip2clip import p_value, stored_scores


# Different distributions of scores: with ties, constant, with heavy tails, of two kinds of images, saturated at 1.
DISTRIBUTIONS = {
    "uniform": lambda rng, n: rng.random(n),
    "beta near one": lambda rng, n: rng.beta(50, 0.5, n),
    "heavy tail": lambda rng, n: 1 - 1 / (1 + rng.pareto(0.7, n)),
    "two kinds": lambda rng, n: np.where(rng.random(n) < 0.9, rng.normal(0.1, 0.01, n), rng.normal(0.9, 0.01, n)),
    "ties": lambda rng, n: np.round(rng.random(n), 1),
    "constant": lambda rng, n: np.full(n, 0.5),
    "saturated": lambda rng, n: np.minimum(1.0, rng.random(n) * 1.5),
    "float32": lambda rng, n: rng.random(n).astype(np.float32),
}


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (250, 0.01), (30, 0.1), (9, 0.1), (57, 0.05)])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_false_alarm_rate_is_kept(name, count, rate):
    """In 10,000 draws of calibration images and a new normal image, the false-alarm rate is at most the target plus
    three standard errors. Without ties and with the minimum number of images, it is also at least the target minus
    three standard errors."""
    rng, draws = np.random.default_rng(0), 10_000
    scores = DISTRIBUTIONS[name](rng, draws * (count + 1)).reshape(draws, count + 1)
    alarms = sum(float(row[0]) > core.conformal_threshold(row[1:], rate) for row in scores)
    error = math.sqrt(rate * (1 - rate) / draws)
    assert alarms / draws <= rate + 3 * error
    if name in ("uniform", "beta near one", "heavy tail") and count in (99, 9):
        assert alarms / draws >= rate - 3 * error


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_p_values_are_valid_and_agree_with_the_threshold(name):
    rng, draws, count = np.random.default_rng(1), 10_000, 60
    scores = DISTRIBUTIONS[name](rng, draws * (count + 1)).reshape(draws, count + 1)
    found = np.array([p_value(float(row[0]), stored_scores(row[1:]), count) for row in scores])
    for rate in (0.02, 0.1, 0.5):
        assert (found <= rate).mean() <= rate + 3 * math.sqrt(rate * (1 - rate) / draws)
        for row, value in zip(scores[:500], found[:500]):
            assert (value <= rate) == (float(row[0]) > core.conformal_threshold(row[1:], rate))


def test_many_scores_are_stored_as_quantiles_rounded_up():
    rng = np.random.default_rng(2)
    for count in (10_000, 10_001, 25_000, 123_457):
        scores = rng.random(count)
        stored = stored_scores(scores)
        assert len(stored) == 10_000
        assert stored[-1] == scores.max()
        ordered = np.sort(scores)
        for value in (0.0, 0.3, 0.999, 0.99995, float(scores.max()), 1.0):
            exact = p_value(value, ordered, count)
            found = p_value(value, stored, count)
            assert exact <= found <= exact + 1.01e-4
    assert stored_scores([0.3, 0.1, 0.2]) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("rate", "number"), [(0.01, 99), (0.1, 9), (0.05, 19), (0.5, 1), (0.9, 1), (0.001, 999), (0.3, 3)]
)
def test_the_smallest_number_of_images(rate, number):
    """Exact, although 0.1 has no exact binary representation."""
    assert core.min_calibration_images(rate) == number
    assert core.conformal_threshold(np.linspace(0, 1, number), rate) <= 1
    if number > 1:
        with pytest.raises(ValueError, match=f"at least {number} normal images, found {number - 1}"):
            core.conformal_threshold(np.linspace(0, 1, number - 1), rate)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), True])
def test_invalid_rates(rate):
    with pytest.raises(ValueError, match="between 0 and 1"):
        core.conformal_threshold(np.linspace(0, 1, 500), rate)


def test_invalid_scores():
    with pytest.raises(ValueError, match="finite"):
        core.conformal_threshold([0.1, float("nan")] * 100, 0.1)


def test_which_score_is_the_threshold():
    assert core.conformal_threshold(np.arange(1, 100) / 100, 0.01) == 0.99
    assert core.conformal_threshold(np.arange(1, 200) / 200, 0.01) == 198 / 200
    assert p_value(0.995, [0.5] * 99, 99) == 0.01
    assert p_value(0.5, [0.5] * 99, 99) == 1.0


@pytest.mark.parametrize("area", [1, 2, 7, 30, 400])
def test_region_score_equals_the_largest_threshold_with_a_region(area):
    rng = np.random.default_rng(area)
    for smooth in (0, 2):
        anomaly_map = ndimage.gaussian_filter(rng.random((20, 20)), smooth).astype(np.float32)
        score = core.region_score(anomaly_map, area)
        for threshold in np.unique(anomaly_map):
            shown = core.keep_large_regions(anomaly_map > threshold, area).any()
            assert shown == (score > threshold)
    assert core.region_score(np.full((5, 5), 0.25), 3) == 0.25
    with pytest.raises(ValueError, match="min_area is 26; expected an integer from 1 to 25"):
        core.region_score(np.zeros((5, 5)), 26)


def test_regions():
    anomaly_map = np.zeros((10, 12), dtype=np.float32)
    anomaly_map[1:3, 2:5] = 0.6
    anomaly_map[6, 8] = 0.9
    anomaly_map[7, 9] = 0.8  # connected by a corner: the same region
    regions = core.find_regions(anomaly_map, anomaly_map > 0.5)
    assert regions == [
        {"box": [8, 6, 10, 8], "area": 2, "mean_score": pytest.approx(0.85), "peak_score": pytest.approx(0.9)},
        {"box": [2, 1, 5, 3], "area": 6, "mean_score": pytest.approx(0.6), "peak_score": pytest.approx(0.6)},
    ]
    assert json.loads(json.dumps(regions)) == regions
    assert core.find_regions(anomaly_map, anomaly_map > 1) == []
    assert core.keep_large_regions(anomaly_map > 0.5, 3).sum() == 6


def regions_one_by_one(anomaly_map: np.ndarray, mask: np.ndarray) -> list[dict]:
    """Measure each region on its own, which is slow for many regions."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    regions = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = anomaly_map[rows, columns][labels[rows, columns] == index]
        box = [columns.start, rows.start, columns.stop, rows.stop]
        mean, peak = float(inside.astype(np.float64).mean()), float(inside.max())
        regions.append({"box": box, "area": int(inside.size), "mean_score": mean, "peak_score": peak})
    return sorted(regions, key=lambda region: (-region["peak_score"], -region["area"], region["box"]))


@given(
    st.sampled_from([0, core.FEW_REGIONS]),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.sampled_from([None, 1, 2]),  # decimals: few distinct values have many ties
    st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=300, deadline=None)
def test_regions_equal_those_measured_one_by_one(few, height, width, seed, density, decimals, dtype):
    rng = np.random.default_rng(seed)
    anomaly_map = rng.random((height, width))
    anomaly_map = (anomaly_map if decimals is None else anomaly_map.round(decimals)).astype(dtype)
    mask = rng.random((height, width)) < density
    expected = regions_one_by_one(anomaly_map, mask)
    with mock.patch.object(core, "FEW_REGIONS", few):
        found = core.find_regions(anomaly_map, mask)
    assert [{**region, "mean_score": None} for region in found] == [
        {**region, "mean_score": None} for region in expected
    ]
    for one, other in zip(found, expected):
        assert one["mean_score"] == pytest.approx(other["mean_score"], abs=1e-12)
        assert list(one) == list(other)
        assert [type(value) for value in one.values()] == [type(value) for value in other.values()]
        assert {type(side) for side in one["box"]} == {int}


def test_regions_of_other_maps():
    mask = np.array([[1, 0, 0, 1]], dtype=np.uint8)
    regions = core.find_regions(np.array([[3, 0, 0, 200]], dtype=np.uint8), mask)
    assert [region["peak_score"] for region in regions] == [200.0, 3.0]
    assert [region["box"] for region in regions] == [[3, 0, 4, 1], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"anomaly_map has shape \(2, 2\); expected \(2, 3\), the shape of the mask"):
        core.find_regions(np.zeros((2, 2)), np.zeros((2, 3), bool))


def test_many_regions_are_fast():
    """250,000 regions of one pixel. Measured one by one, they take more than 4 seconds."""
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[::2, ::2] = True
    anomaly_map = np.random.default_rng(0).random((1000, 1000)).astype(np.float32)
    start = time.process_time()
    regions = core.find_regions(anomaly_map, mask)
    assert time.process_time() - start < 2
    assert len(regions) == 250_000
    assert gc.isenabled()
    peaks = [region["peak_score"] for region in regions]
    assert peaks == sorted(anomaly_map[mask].tolist(), reverse=True)
