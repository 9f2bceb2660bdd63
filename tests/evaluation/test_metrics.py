import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file
from scipy import ndimage

from helpers.reference_metrics import exact_aupro, exact_metrics, sweep_aupro
from helpers.tiny import FIXTURES
from vip2clip_hf.evaluation import metrics as metrics_module
from vip2clip_hf.evaluation.curves import aupro, f1_max
from vip2clip_hf.evaluation.histogram import PixelHistogram
from vip2clip_hf.evaluation.histogram_counts import to_keys, to_values
from vip2clip_hf.evaluation.histogram_state import pack_state, unpack_state
from vip2clip_hf.evaluation.metrics import METRICS, AnomalyMetrics


PIXEL = ("auroc", "ap", "f1")
SIDE = 64


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def computed(maps, masks, batch_size: int = 4, **options) -> dict:
    metrics = AnomalyMetrics(**options)
    for start in range(0, len(maps), batch_size):
        part = masks[start : start + batch_size]
        labels = part.reshape(len(part), -1).any(axis=1).astype(int)
        metrics.update(np.zeros(len(part)), labels, maps[start : start + batch_size], part)
    return metrics.compute()["categories"]["all"]


def assert_as_exact(result: dict, maps: np.ndarray, masks: np.ndarray, tolerance: float = 1e-4):
    maps = maps.astype(np.float32)
    exact = {**exact_metrics(masks, maps), "aupro": exact_aupro(maps, masks)}
    for name, value in exact.items():
        difference = abs(result[f"pixel_{name}"] - value)
        assert difference <= result["error_bounds"][f"pixel_{name}"] + 1e-9, name  # within the bound
        assert difference <= tolerance, name


def smooth_maps(count: int = 12, side: int = SIDE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps similar to those of a model, and masks with one to three regions in 40 % of the images."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, side, side), dtype=bool)
    for index in range(round(0.4 * count)):
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, side - 8, size=2)
            height, width = rng.integers(2, side // 4, size=2)
            masks[index, y : y + height, x : x + width] = True
    noise = ndimage.gaussian_filter(rng.standard_normal((count, side, side)), (0, side / 64, side / 64))
    maps = 1 / (1 + np.exp(-(noise / noise.std() + 1.2 * masks - 1)))
    return maps.astype(np.float32), masks


# Small enough to check by hand


def test_pixels_by_hand():
    masks = np.array([[[1, 1, 0, 0], [0, 0, 0, 1]]], dtype=bool)  # regions of 2 pixels and of 1
    maps = np.array([[[0.9, 0.4, 0.8, 0.1], [0.1, 0.1, 0.1, 0.7]]], dtype=np.float32)
    result = computed(maps, masks)
    # 5 negatives, 3 positives; of the 15 pairs 0.4 < 0.8 and 0.7 < 0.8 are in the wrong order.
    assert result["pixel_auroc"] == pytest.approx(13 / 15)
    # Ranking 0.9 +, 0.8 -, 0.7 +, 0.4 +: precision 1, 2/3, 3/4 at the positives.
    assert result["pixel_ap"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert result["pixel_f1"] == pytest.approx(2 * 3 / (4 + 3))
    assert result["pixel_f1_threshold"] == pytest.approx(0.4)
    # FPR 0: overlap (1/2 + 0) / 2. FPR 1/5, after 0.8: still 1/4, then 3/4 and 1. So the curve goes flat at 1/4 to
    # 0.2, jumps to 1 and is cut at 0.3.
    assert result["pixel_aupro"] == pytest.approx((0.2 * 0.25 + 0.1 * 1) / 0.3)
    assert (result["num_pixels"], result["num_anomalous_pixels"], result["num_regions"]) == (8, 3, 2)
    assert set(result["error_bounds"].values()) == {0.0}


def test_regions_are_connected_at_corners():
    mask = np.zeros((5, 5), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[1, 2] = True  # one region, connected at a corner
    mask[4, 4] = True
    weights, number = metrics_module.region_weights(mask)
    assert number == 2
    assert weights.tolist() == [1 / 3, 1 / 3, 1 / 3, 1]


def test_images_by_hand():
    metrics = AnomalyMetrics()
    metrics.update([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    result = metrics.compute()["categories"]["all"]
    assert result["image_auroc"] == pytest.approx(3.5 / 4)
    assert result["image_ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["image_f1"] == pytest.approx(0.8)
    assert result["image_f1_threshold"] == np.nextafter(np.float32(0.5), np.float32(0))
    assert (result["num_images"], result["num_anomalous_images"]) == (4, 2)


def test_aupro_is_cut_at_the_limit_exactly():
    counts = np.array([[0.0, 4, 4], [1, 1, 0], [1, 1, 0]])  # FPR 0, 1/2, 1; PRO 1/2, 1, 1
    assert aupro(counts, 0.3) == pytest.approx((0.5 + (0.5 + 0.5 * 0.6)) / 2)
    assert aupro(counts, 0.5) == pytest.approx(0.75)
    assert aupro(counts, 1.0) == pytest.approx(0.875)


# Compared with metrics of individual pixels


@pytest.mark.parametrize("seed", range(3))
def test_smooth_maps(seed):
    maps, masks = smooth_maps(seed=seed)
    assert_as_exact(computed(maps, masks), maps, masks)


@pytest.mark.parametrize("pending", [1, 5000, 10**9])
def test_results_do_not_depend_on_pending_pixels(monkeypatch, pending):
    maps, masks = smooth_maps(30)
    monkeypatch.setattr(metrics_module, "PENDING_PIXELS", pending)
    assert_as_exact(computed(maps, masks), maps, masks, 2e-5)


HOSTILE = {
    "tiny range": lambda x, m: 0.5 + 1e-6 * x,
    "tiny range and both ends": lambda x, m: np.where(x > 0.95, 1, np.where(x < 0.05, 0, 0.5 + 1e-6 * x)),
    "many ties": lambda x, m: np.round(8 * x) / 8,
    "two values": lambda x, m: (x > 0.4) * 1.0,
    "ends": lambda x, m: np.where(x > 0.5, 1.0, 0.0) + 1e-30 * x,
    "perfect separation": lambda x, m: 0.4 * x + 0.5 * m,
    "reversed": lambda x, m: 1 - 0.4 * x - 0.5 * m,
    "bfloat16": lambda x, m: torch.from_numpy(x).bfloat16().float().numpy(),
    "float16": lambda x, m: x.astype(np.float16),
    "negative values": lambda x, m: 10 * (x - 0.5),
    "many magnitudes": lambda x, m: np.exp(60 * (x - 0.5)),
    "dense and sparse": lambda x, m: np.where(x > 0.5, 0.7 + 1e-5 * x, x**4),
    "minus zero": lambda x, m: np.where(x > 0.3, -0.0, 0.0) + (x > 0.6),
}


LIGHT = ("two values", "minus zero", "many ties")  # the others take long in parts of 3000 pixels


@pytest.mark.parametrize(
    ("pending", "name"),
    [
        pytest.param(pending, name, marks=[pytest.mark.slow] if pending == 3000 and name not in LIGHT else [])
        for pending in (3000, 10**9)
        for name in HOSTILE
    ],
)
def test_hostile_maps(monkeypatch, name, pending):
    """Also if the distribution changes between batches."""
    monkeypatch.setattr(metrics_module, "PENDING_PIXELS", pending)
    maps, masks = smooth_maps(20)
    changed = HOSTILE[name](maps, masks)
    assert_as_exact(computed(changed, masks), changed, masks)
    mixed = np.concatenate([maps, changed.astype(np.float32)])
    assert_as_exact(computed(mixed, np.concatenate([masks, masks])), mixed, np.concatenate([masks, masks]))


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_few_defect_pixels_among_millions(count):
    rng = np.random.default_rng(0)
    maps = rng.random((count, 500, 500), dtype=np.float32) ** 4
    masks = np.zeros(maps.shape, dtype=bool)
    masks[3, 7, 9:12] = masks[2, 400, 400] = True
    maps[3, 7, 9:12] = 0.9, 0.99, 0.2
    assert_as_exact(computed(maps, masks), maps, masks)


def test_drifting_distribution(monkeypatch):
    """Ranges that contain few values at first contain many values later."""
    monkeypatch.setattr(metrics_module, "PENDING_PIXELS", 1)
    maps, masks = smooth_maps(24)
    maps = (maps * np.geomspace(1, 1e-3, 24)[:, None, None] + np.linspace(0, 1, 24)[:, None, None]).astype(np.float32)
    assert_as_exact(computed(maps, masks, batch_size=1), maps, masks)


def test_fewer_nodes_widen_the_bounds(monkeypatch):
    from vip2clip_hf.evaluation import histogram

    monkeypatch.setattr(histogram, "MAX_NODES", 20)
    monkeypatch.setattr(metrics_module, "PENDING_PIXELS", 3000)
    maps, masks = smooth_maps(20)
    for changed in (maps, (0.5 + 1e-4 * maps).astype(np.float32)):
        result = computed(changed, masks)
        assert result["error_bounds"]["pixel_ap"] > 1e-4
        assert_as_exact(result, changed, masks, tolerance=1)


@st.composite
def pixel_cases(draw):
    count, side = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = st.sampled_from(
        [
            rng.random(count * side * side),
            rng.integers(0, 4, count * side * side) / 3,
            0.3 + 1e-7 * rng.integers(0, 9, count * side * side),
            rng.standard_normal(count * side * side) * 10.0 ** rng.integers(-30, 30, count * side * side),
        ]
    )
    maps = draw(values).reshape(count, side, side).astype(np.float32)
    masks = rng.random(maps.shape) < draw(st.sampled_from([0.05, 0.3, 0.9]))
    masks.flat[0], masks.flat[-1] = True, False
    return maps, masks


@given(pixel_cases(), st.integers(1, 400), st.sampled_from([1, 2]))
@settings(max_examples=150, deadline=None)
def test_random_cases(case, pending, batch_size):
    maps, masks = case
    before, metrics_module.PENDING_PIXELS = metrics_module.PENDING_PIXELS, pending
    try:
        assert_as_exact(computed(maps, masks, batch_size), maps, masks)
    finally:
        metrics_module.PENDING_PIXELS = before


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.integers(0, 1)), min_size=2, max_size=30))
@settings(max_examples=150, deadline=None)
def test_random_images(pairs):
    scores, labels = (np.array(values) for values in zip(*pairs))
    labels[0], labels[-1] = 0, 1
    metrics = AnomalyMetrics()
    for score, label in zip(scores, labels):
        metrics.update([score], [label])
    result = metrics.compute()["categories"]["all"]
    for name, value in exact_metrics(labels, scores).items():
        assert result[f"image_{name}"] == pytest.approx(value, abs=1e-12)


def test_threshold_of_the_best_f1():
    maps, masks = smooth_maps()
    result = computed(maps, masks)
    found = maps > result["pixel_f1_threshold"]
    true = (found & masks).sum()
    assert 2 * true / (found.sum() + masks.sum()) == pytest.approx(result["pixel_f1"], abs=1e-4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([-3.0, 0.0, 0.1, 0.6, 0.6 + 1e-12, 0.60000002, 1.0, 1e30, 1e300]), st.integers(0, 1)
        ),
        min_size=2,
        max_size=30,
    ),
    st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=100, deadline=None)
def test_applying_the_threshold_reproduces_the_f1(pairs, dtype):
    """The threshold was for "greater than or equal", but the pipeline decides by "greater than"."""
    scores, labels = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    scores = np.clip(scores, -1e37, 1e37).astype(np.float32) if dtype is np.float32 else scores
    labels[0], labels[-1] = 0, 1
    metrics = AnomalyMetrics()
    metrics.update(scores, labels)
    result = metrics.compute()["categories"]["all"]
    threshold = float(repr(result["image_f1_threshold"]))  # as written to results.csv and results.json
    for found in (scores > threshold, (torch.from_numpy(scores) > threshold).numpy()):
        f1 = 2 * (found & (labels == 1)).sum() / (found.sum() + labels.sum())
        assert f1 == pytest.approx(result["image_f1"], abs=1e-12)
    # The F1 itself is the one of scikit-learn's curve.
    assert result["image_f1"] == pytest.approx(exact_metrics(labels, scores)["f1"], abs=1e-12)


def test_thresholds_are_finite():
    for value in (-1e300, float(-np.finfo(np.float32).max), 0.0):
        f1, threshold = f1_max(np.array([1.0, value]), np.array([[0.0, 0], [0, 1], [0, 1]]))
        assert f1 == 1
        assert -math.inf < threshold < value


def test_float64_scores_keep_their_order():
    """Scores of torch were rounded to float32, so these were equal."""
    scores = np.array([0.5, 0.5 + 1e-12])
    for values in (scores, torch.from_numpy(scores), scores.tolist()):
        metrics = AnomalyMetrics()
        metrics.update(values, [0, 1])
        result = metrics.compute()["categories"]["all"]
        assert result["image_auroc"] == 1
        assert (torch.from_numpy(scores) > result["image_f1_threshold"]).tolist() == [False, True]


# Compared with the released code


@pytest.mark.parametrize("prefix", ["metric", "metric_synthetic"])
def test_release(prefix):
    folder = FIXTURES / "oracle_release"
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    if prefix == "metric_synthetic":
        scores, labels = inputs["metrics.scores"], inputs["metrics.labels"]
        maps, masks = inputs["metrics.maps"], inputs["metrics.masks"]
    else:
        scores, labels = expected["image_scores"], inputs["labels"]
        maps, masks = expected["anomaly_map"], inputs["masks"]
    metrics = AnomalyMetrics(aupro_convention="release")
    metrics.update(scores, labels, maps, masks.reshape(maps.shape))
    result = metrics.compute()["categories"]["all"]
    found = {
        "image-auroc": result["image_auroc"],
        "image-ap": result["image_ap"],
        "image-f1": result["image_f1"],
        "pixel-auroc": result["pixel_auroc"],
        "pixel-ap": result["pixel_ap"],
        "pixel-aupro": result["pixel_aupro"],
        "pixel-f1": result["pixel_f1"],
        "pixel-f1-threshold": result["pixel_f1_threshold"],
        "image-aupro": area_under_precision_recall(
            labels, scores
        ),  # the name in the released code, which does not use it
    }
    names = {name.split(".")[1] for name in expected if name.startswith(f"{prefix}.")}
    assert set(found) == names
    for name, value in found.items():
        assert value == pytest.approx(float(expected[f"{prefix}.{name}"]), rel=1e-5, abs=1e-7), name


def area_under_precision_recall(labels, scores) -> float:
    from sklearn.metrics import auc, precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, scores)
    return auc(recall, precision)


@pytest.mark.parametrize("seed", range(3))
def test_release_sweep(seed):
    maps, masks = smooth_maps(seed=seed)
    result = computed(maps, masks, aupro_convention="release")
    assert result["pixel_aupro"] == pytest.approx(sweep_aupro(maps, masks), abs=1e-4)
    assert abs(result["pixel_aupro"] - computed(maps, masks)["pixel_aupro"]) > 1e-4  # the conventions differ


# Merging, saving


def halves(maps, masks):
    labels = masks.reshape(len(masks), -1).any(axis=1).astype(int)
    scores = maps.reshape(len(maps), -1).max(axis=1)
    categories = ["a" if index % 3 else "b" for index in range(len(maps))]
    parts = []
    for numbers in (range(0, len(maps), 2), range(1, len(maps), 2)):
        metrics = AnomalyMetrics()
        numbers = list(numbers)
        metrics.update(
            scores[numbers], labels[numbers], maps[numbers], masks[numbers], [categories[n] for n in numbers]
        )
        parts.append(metrics)
    whole = AnomalyMetrics()
    whole.update(scores, labels, maps, masks, categories)
    return whole, *parts


def assert_same(one: dict, two: dict, tolerance: float = 1e-6):
    for name, category in one["categories"].items():
        for metric, value in category.items():
            if isinstance(value, (int, float)):
                found = two["categories"][name][metric]
                assert found == pytest.approx(value, abs=tolerance, nan_ok=True), (name, metric)
        assert two["categories"][name]["undefined"] == category["undefined"]
    for metric in METRICS:
        assert two["mean"][metric] == pytest.approx(one["mean"][metric], abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: np.round(30 * x) / 30, lambda x: 0.5 + 1e-6 * x])
def test_merging_equals_one_pass(change, monkeypatch):
    monkeypatch.setattr(metrics_module, "PENDING_PIXELS", 20_000)
    maps, masks = smooth_maps(23)
    whole, first, second = halves(change(maps).astype(np.float32), masks)
    first.merge(second)
    assert_same(whole.compute(), first.compute())
    first.merge(AnomalyMetrics())
    assert_same(whole.compute(), first.compute())


@given(pixel_cases(), pixel_cases())
@settings(max_examples=60, deadline=None)
def test_merged_random_cases(one, two):
    metrics = [AnomalyMetrics(), AnomalyMetrics()]
    for part, (maps, masks) in zip(metrics, (one, two)):
        labels = masks.reshape(len(masks), -1).any(axis=1).astype(int)
        part.update(np.zeros(len(masks)), labels, maps, masks)
    metrics[0].merge(metrics[1])
    result = metrics[0].compute()["categories"]["all"]
    values = np.concatenate([one[0].ravel(), two[0].ravel()])
    marked = np.concatenate([one[1].ravel(), two[1].ravel()])
    for name, value in exact_metrics(marked, values).items():
        assert result[f"pixel_{name}"] == pytest.approx(value, abs=1e-6)


def test_state_dict(tmp_path):
    maps, masks = smooth_maps(10)
    whole, first, second = halves(maps, masks)
    np.savez(tmp_path / "state.npz", **first.state_dict())
    loaded = AnomalyMetrics()
    with np.load(tmp_path / "state.npz") as state:
        loaded.load_state_dict(dict(state))
    assert_same(first.compute(), loaded.compute(), 0)
    loaded.merge(second)
    assert_same(whole.compute(), loaded.compute())
    assert loaded.num_images == 10
    with pytest.raises(
        ValueError, match=r"other metrics have fpr_limit 0\.3 and aupro_convention 'exact'; expected 0\.1"
    ):
        AnomalyMetrics(fpr_limit=0.1).load_state_dict(first.state_dict())
    for name in ("0.histogram", "0.scores", "settings"):
        state = first.state_dict()
        del state[name]
        with pytest.raises(ValueError, match="not a complete state"):
            loaded.load_state_dict(state)
    for cut in (0, 10, -1):
        state = first.state_dict()
        state["0.histogram"] = state["0.histogram"][:cut]
        with pytest.raises(ValueError, match=r"not a complete state.*damaged"):
            loaded.load_state_dict(state)
    with pytest.raises(ValueError, match="not a complete state"):
        loaded.load_state_dict({})
    assert loaded.num_images == 10  # not changed
    with pytest.raises(
        ValueError, match=r"have fpr_limit 0\.3 and aupro_convention 'release'; expected 0\.3 and 'exact'"
    ):
        loaded.merge(AnomalyMetrics(aupro_convention="release"))


def test_states_of_earlier_versions(tmp_path):
    """They contain the arrays of the histogram one by one."""
    first = halves(*smooth_maps(10))[1]
    state = first.state_dict()
    for number in range(2):
        packed = state.pop(f"{number}.histogram")
        state.update({f"{number}.{name}": array for name, array in unpack_state(packed).items()})
    loaded = AnomalyMetrics()
    loaded.load_state_dict(state)
    assert_same(first.compute(), loaded.compute(), 0)


def test_states_are_small():
    """A category of 100 maps of 518 x 518 had 18 MB, saved every minute; it has 0.8 MB."""
    metrics = AnomalyMetrics()
    maps, masks = smooth_maps(20, 256)
    metrics.update(np.arange(20), masks.any(axis=(1, 2)), maps, masks)
    state = metrics.state_dict()
    histogram = metrics._categories["all"].histogram
    arrays = histogram.state()
    packed = state["0.histogram"]
    assert packed.nbytes < sum(array.nbytes for array in arrays.values()) / 10
    restored = PixelHistogram()
    restored.add_state(unpack_state(packed))
    for one, two in zip(histogram.cells(), restored.cells()):
        np.testing.assert_array_equal(one, two)  # without loss
    assert metrics.state_dict()["0.histogram"] is packed  # not packed again before there are new pixels
    metrics.update([1], [1], maps[:1], masks[:1])
    assert metrics.state_dict()["0.histogram"] is not packed
    empty = PixelHistogram()
    empty.add_state(unpack_state(pack_state(PixelHistogram().state())))
    assert empty.totals.sum() == 0


def test_both_conventions_are_computed():
    maps, masks = smooth_maps()
    exact, release = computed(maps, masks), computed(maps, masks, aupro_convention="release")
    for result in (exact, release):
        assert result["pixel_aupro_exact"] == exact["pixel_aupro"]
        assert result["pixel_aupro_release"] == release["pixel_aupro"]
    assert exact["pixel_aupro"] != release["pixel_aupro"]


def test_order_of_keys():
    values = np.array([-np.inf, -3e38, -1, -1e-45, 0, 1e-45, 0.5, 1, np.inf], dtype=np.float32)
    keys = to_keys(values)
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert np.array_equal(to_values(keys), values)
    assert to_keys(np.array([-0.0], np.float32)) == to_keys(np.array([0.0], np.float32))


def test_memory_is_bounded():
    histogram = PixelHistogram()
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(12):
        keys = to_keys(rng.random(300_000, dtype=np.float32))
        histogram.add([keys], keys[:1000], np.ones(1000))
        arrays = [histogram.bins.own, histogram.parts.own, histogram.leaves]
        sizes.append(sum(array.nbytes for array in arrays))
    assert sizes[-1] <= 1.5 * sizes[3]


# Inputs


def test_torch_and_numpy_and_lists():
    maps, masks = smooth_maps(4)
    labels = masks.reshape(4, -1).any(axis=1)
    results = []
    for kind in (np.asarray, torch.from_numpy, list):
        metrics = AnomalyMetrics()
        scores = np.linspace(0, 1, 4)
        metrics.update(
            torch.from_numpy(scores) if kind is torch.from_numpy else scores,
            torch.from_numpy(labels) if kind is torch.from_numpy else labels,
            kind(maps),
            kind(masks.astype(np.uint8)),
        )
        results.append(metrics.compute())
    assert_same(results[0], results[1], 0)
    assert_same(results[0], results[2], 0)
    metrics = AnomalyMetrics()
    metrics.update(
        torch.tensor([0.1, 0.9], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([0, 1]),
        torch.rand(2, 4, 4).bfloat16().requires_grad_(),
        torch.eye(4)[None].repeat(2, 1, 1) * torch.tensor([0, 1])[:, None, None],
    )
    assert metrics.compute()["mean"]["image_auroc"] == 1


def test_maps_of_different_sizes():
    metrics = AnomalyMetrics()
    metrics.update([0, 1], [0, 1], [np.zeros((3, 5)), np.ones((7, 2))], [np.zeros((3, 5), int), np.ones((7, 2), int)])
    result = metrics.compute()["categories"]["all"]
    assert (result["pixel_auroc"], result["num_pixels"]) == (1, 29)


def test_images_without_masks_count_in_image_metrics_only():
    maps, masks = smooth_maps(6)
    labels = masks.reshape(6, -1).any(axis=1).astype(int)
    valid = np.array([True, False, True, True, True, True])
    metrics = AnomalyMetrics()
    maps[1] = np.nan  # not used
    metrics.update(np.arange(6), labels, maps, masks, has_mask=valid)
    result = metrics.compute()["categories"]["all"]
    assert (result["num_images"], result["num_maps"]) == (6, 5)
    assert result["pixel_auroc"] == pytest.approx(exact_metrics(masks[valid], maps[valid])["auroc"], abs=1e-6)


def test_undefined_metrics_are_nan_with_a_reason():
    metrics = AnomalyMetrics()
    ones, zeros = np.ones((2, 4, 4), int), np.zeros((2, 4, 4), int)
    values = np.random.default_rng(0).random((2, 4, 4))
    metrics.update([0.1, 0.2], [1, 1], values, ones, ["anomalous"] * 2)
    metrics.update([0.1, 0.2], [0, 0], values, zeros, ["normal"] * 2)
    metrics.update([0.1, 0.2], [0, 1], categories=["images"] * 2)
    metrics.update([0.1, 0.2], [0, 1], values, [zeros[0], np.eye(4, dtype=int)], ["whole"] * 2)
    result = metrics.compute()
    categories, mean = result["categories"], result["mean"]
    # Any score has an AP and an F1 of 1 among anomalous images alone; they raised the mean.
    names = {"image": ("auroc", "ap", "f1"), "pixel": ("auroc", "ap", "f1", "aupro", "aupro_exact", "aupro_release")}
    assert categories["anomalous"]["undefined"] == {
        f"{level}_{name}": f"no normal {level}s" for level, found in names.items() for name in found
    }
    assert math.isnan(categories["anomalous"]["image_f1_threshold"])
    for metric in METRICS:
        assert mean["undefined"][metric]
    assert categories["normal"]["undefined"]["image_f1"] == "no anomalous images"
    assert categories["normal"]["undefined"]["pixel_aupro"] == "no anomalous pixels"
    assert set(categories["images"]["undefined"].values()) == {"no image has a mask"}
    assert categories["whole"]["undefined"] == {}
    for category in categories.values():
        for metric in METRICS:
            assert math.isnan(category[metric]) == (metric in category["undefined"])
    assert mean["image_auroc"] == np.mean([categories["images"]["image_auroc"], categories["whole"]["image_auroc"]])
    assert mean["undefined"]["image_auroc"] == "no anomalous images; no normal images (anomalous, normal)"
    json.dumps(result)


def test_release_aupro_undefined():
    maps = np.array([[[0.1, 0.1], [0.9, 0.9]]], dtype=np.float32)
    masks = np.array([[[0, 0], [1, 1]]])
    result = computed(maps, masks.astype(bool), aupro_convention="release")
    assert math.isnan(result["pixel_aupro"])
    assert result["undefined"]["pixel_aupro"] == "fewer than two different false positive rates below the limit"
    exact = computed(maps, masks.astype(bool))
    assert exact["pixel_aupro"] == 1
    assert {name for name in exact["undefined"] if "pixel" in name} == {"pixel_aupro_release"}
    flat = computed(np.full((1, 2, 2), 0.5, np.float32), masks.astype(bool), aupro_convention="release")
    assert math.isnan(flat["pixel_aupro"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [0, 1]), r"scores have shape \(1,\) and labels \(2,\)"),
        (
            ([0.1, math.nan], [0, 1]),
            r"scores contains NaN or infinite values at positions \[1\]; expected finite numbers",
        ),
        (([0.1, 0.2], [0, 2]), r"labels contains the values \[2\]; expected only 0"),
        (([0.1, 0.2], [0, 1], None, np.zeros((2, 3, 3))), "need anomaly_maps"),
        (([0.1, 0.2], [0, 1], np.zeros((1, 3, 3)), np.zeros((2, 3, 3))), "Found 1 maps and 2 masks for 2 images"),
        (
            ([0.1, 0.2], [0, 1], np.zeros((2, 3, 3)), np.zeros((2, 3, 4))),
            r"position 0 has shape \(3, 3\) and its mask has shape \(3, 4\)",
        ),
        (
            ([0.1, 0.2], [0, 1], np.full((2, 3, 3), np.inf), np.zeros((2, 3, 3))),
            "The map at position 0 contains NaN or inf",
        ),
        (
            ([0.1, 0.2], [0, 1], np.zeros((2, 3, 3)), np.full((2, 3, 3), 255)),
            r"The mask at position 0 contains the values \[255\]",
        ),
        (([0.1, 0.2], [1, 0], np.zeros((2, 3, 3)), np.ones((2, 3, 3))), "position 1 is labelled normal, but .* 9 pix"),
        (([0.1, 0.2], [0, 1], None, None, ["a"]), "expected 2 strings, one per image"),
        (([0.1, 0.2], [0, 1], np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), None, [True]), "has_mask has shape"),
        ((["a", "b"], [0, 1]), "scores has dtype <U1; expected a tensor or an array of numbers"),
    ],
)
def test_invalid_input_changes_nothing(arguments, message):
    metrics = AnomalyMetrics()
    metrics.update([0.3, 0.7], [0, 1])
    before = metrics.compute()
    with pytest.raises(ValueError, match=message):
        metrics.update(*arguments)
    assert json.dumps(metrics.compute()) == json.dumps(before)


def test_nothing_to_compute():
    with pytest.raises(ValueError, match="no images have been added"):
        AnomalyMetrics().compute()
    metrics = AnomalyMetrics()
    metrics.update([0.1], [0])
    metrics.reset()
    with pytest.raises(ValueError, match="no images have been added"):
        metrics.compute()


@pytest.mark.parametrize("options", [{"fpr_limit": 0}, {"fpr_limit": 1.5}, {"aupro_convention": "paper"}])
def test_invalid_settings(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AnomalyMetrics(**options)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: 0.5 + 1e-5 * x, lambda x: np.round(300 * x) / 300])
def test_undoing_divisions_keeps_the_accuracy(monkeypatch, change):
    from vip2clip_hf.evaluation import histogram

    monkeypatch.setattr(histogram, "MANY_NODES", 50)
    monkeypatch.setattr(metrics_module, "PENDING_PIXELS", 8000)
    compactions = []
    compact = PixelHistogram._compact
    monkeypatch.setattr(PixelHistogram, "_compact", lambda self: compactions.append(1) or compact(self))
    maps, masks = smooth_maps(40)
    maps = change(maps).astype(np.float32)
    assert_as_exact(computed(maps, masks), maps, masks)
    assert compactions or len(np.unique(maps)) < 400
