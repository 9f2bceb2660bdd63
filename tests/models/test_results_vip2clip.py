"""Results as JSON. The expected texts of masks were computed with pycocotools 2.0.11, except those by hand."""

import base64
import copy
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import ROOT
from vip2clip_hf import AnomalyDetectionPipeline, AnomalyDetectionResult, decode_result
from vip2clip_hf.models.vip2clip.rle_vip2clip import decode_rle, encode_rle


TEXTS = [
    # By hand: one character holds 4 bits and a sign. Runs 1 and 3; 4; 0 and 21 = 5 + 16, in two characters.
    (np.array([[0, 1], [1, 1]]), "13"),
    (np.zeros((2, 2)), "4"),
    (np.ones((3, 7)), "0e0"),
    (np.eye(5), "0150000000"),
    (np.tri(40, 60), "0X1" + "1O" * 39 + "ig0"),
]


@pytest.mark.parametrize(("mask", "text"), TEXTS)
def test_known_texts_of_masks(mask, text):
    assert encode_rle(mask) == {"size": list(mask.shape), "counts": text}
    for counts in (text, text.encode()):
        decoded = decode_rle({"size": mask.shape, "counts": counts})
        np.testing.assert_array_equal(decoded, mask > 0)
        assert decoded.dtype == bool


def read_by_definition(text: str, size: tuple[int, int]) -> np.ndarray:
    """Decode one character after another, as the format is defined."""
    runs, number, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            number -= (1 << shift) if code & 16 else 0
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    pixels = [place % 2 == 1 for place, run in enumerate(runs) for _ in range(run)]
    return np.array(pixels, dtype=bool).reshape(size[::-1]).T


def test_masks_round_trip():
    rng = np.random.default_rng(0)
    for number in range(200):
        height, width = rng.integers(1, 60, 2)
        mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
        mask = np.repeat(mask, rng.integers(1, 40), axis=number % 2)
        encoded = encode_rle(mask)
        np.testing.assert_array_equal(read_by_definition(encoded["counts"], mask.shape), mask)
        np.testing.assert_array_equal(decode_rle(encoded), mask)
    large = np.zeros((3000, 5000), dtype=bool)  # runs of several characters, and negative differences
    large[2990:, 4000:] = large[:, 2] = large[0, 10] = True
    np.testing.assert_array_equal(decode_rle(encode_rle(large)), large)
    empty = np.zeros((0, 5), dtype=bool)
    assert decode_rle(encode_rle(empty)).shape == (0, 5)


@pytest.mark.parametrize(
    "encoded",
    [
        {"counts": "4"},
        {"size": [2, 2], "counts": [4]},
        {"size": [2, 2], "counts": "5"},
        {"size": [2, 2], "counts": "3"},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "4é"},
        {"size": [2, 2], "counts": "4 "},
        {"size": [2, 2], "counts": "P"},  # a character that another one has to follow
        {"size": [2, 2], "counts": "O5"},  # a negative run
        {"size": [2, 2], "counts": "P" * 30 + "0"},
        {"size": [2, -2], "counts": "4"},
        {"size": [2, 2.0], "counts": "4"},
        {"size": [True, 4], "counts": "4"},
        {"size": [2, 2, 1], "counts": "4"},
        {"size": "22", "counts": "4"},
    ],
)
def test_texts_that_are_no_mask(encoded):
    with pytest.raises(ValueError, match=r"expected|too large"):
        decode_rle(encoded)


def test_a_short_text_cannot_fill_the_memory():
    side = 30_000
    bomb = encode_rle(np.zeros((1, 1), dtype=bool)) | {"size": [side, side], "counts": "PPldj0"}
    with pytest.raises(ValueError, match="expected at most 100 pixels"):
        decode_rle(bomb, max_pixels=100)
    with pytest.raises(ValueError, match="expected at most"):
        decode_result({"score": 0.1, "label": "normal", "size": [side, side], "mask": bomb})
    with pytest.raises(ValueError, match="expected at most"):
        decode_result({"score": 0.1, "label": "normal", "size": [1, 1], "mask": bomb})


@pytest.fixture
def result() -> AnomalyDetectionResult:
    rng = np.random.default_rng(1)
    anomaly_map = rng.random((30, 40), dtype=np.float32)
    anomaly_map[0, :2] = 0, 1
    region = {"box": [1, 2, 4, 8], "area": 12, "mean_score": 0.625, "peak_score": 0.75}
    return AnomalyDetectionResult(
        score=0.875, label="anomalous", anomaly_map=anomaly_map, mask=anomaly_map > 0.9, p_value=0.05,
        regions=[region], heatmap=Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)),
    )  # fmt: skip


@pytest.mark.parametrize("mask", ["rle", "png"])
def test_json_round_trip(result, mask):
    text = result.to_json(mask=mask, anomaly_map="png")
    assert "\n" not in text
    assert "\n" in result.to_json(indent=2)
    found = json.loads(text)
    assert list(found) == ["score", "label", "p_value", "size", "regions", "mask", "anomaly_map", "heatmap"]
    assert found == result.to_dict(mask=mask, anomaly_map="png")
    assert (found["score"], found["label"], found["p_value"], found["size"]) == (0.875, "anomalous", 0.05, [30, 40])
    assert found["regions"] == result["regions"]
    stored = Image.open(io.BytesIO(base64.b64decode(found["anomaly_map"]["png"])))
    assert stored.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(stored), np.rint(result["anomaly_map"].astype(float) * 65535))
    decoded = decode_result(found)
    assert type(decoded) is AnomalyDetectionResult
    assert set(decoded) == set(result)
    np.testing.assert_array_equal(decoded["mask"], result["mask"])
    np.testing.assert_allclose(decoded["anomaly_map"], result["anomaly_map"], rtol=0, atol=1.01 / 131070)
    assert decoded["anomaly_map"].dtype == np.float32
    assert decoded["mask"].dtype == bool
    np.testing.assert_array_equal(np.asarray(decoded["heatmap"]), np.asarray(result["heatmap"]))
    assert decoded.to_dict(mask=mask, anomaly_map="png") == found


def test_parts_are_left_out(result):
    assert set(result.to_dict()) == {"score", "label", "p_value", "size", "regions", "mask", "heatmap"}
    assert set(result.to_dict(mask=None, heatmap=None)) == {"score", "label", "p_value", "size", "regions"}
    small = AnomalyDetectionResult({name: result[name] for name in ("score", "label", "mask")})
    found = small.to_dict(anomaly_map="png")
    assert set(found) == {"score", "label", "size", "mask"}
    decoded = decode_result(small.to_dict(mask=None))
    assert set(decoded) == {"score", "label"}
    assert decoded.size == (30, 40)
    assert pickle.loads(pickle.dumps(decoded)).size == decoded.copy().size == copy.copy(decoded).size == (30, 40)
    assert decode_result({**found, "p_value": None})["p_value"] is None
    with pytest.raises(ValueError, match=r"keys \['label', 'score'\]; expected mask or anomaly_map"):
        AnomalyDetectionResult(score=0.5, label="normal").to_dict()


def test_tensors_and_numpy_numbers(result):
    tensors = {name: torch.from_numpy(result[name]) for name in ("anomaly_map", "mask")}
    other = AnomalyDetectionResult({**result, **tensors, "score": np.float32(0.875), "p_value": np.float64(0.05)})
    assert other.to_json(anomaly_map="png") == result.to_json(anomaly_map="png")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"mask": "polygon"}, "mask is 'polygon'; expected 'rle', 'png' or None"),
        ({}, {"anomaly_map": "rle"}, "anomaly_map is 'rle'; expected 'png' or None"),
        ({}, {"heatmap": True}, "heatmap is True; expected 'png' or None"),
        ({"score": float("nan")}, {}, r"score is nan; expected a number in \[0, 1\]"),
        ({"p_value": 2}, {}, r"p_value is 2; expected a number in \[0, 1\]"),
        ({"anomaly_map": np.full((30, 40), np.nan)}, {"anomaly_map": "png"}, "not finite or outside"),
        ({"regions": [{"box": [1, 2]}]}, {}, "A region is .* expected a dict with box"),
    ],
)
def test_results_that_cannot_be_written(result, change, options, message):
    with pytest.raises(ValueError, match=message):
        AnomalyDetectionResult({**result, **change}).to_json(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "high"}, "score is high; expected a number"),
        ({"size": None}, "size is None; expected"),
        ({"size": [40, 30]}, r"mask has shape \(30, 40\); expected \(40, 30\)"),
        ({"mask": {"png": "!"}}, "mask cannot be read; expected"),
        ({"mask": {"png": base64.b64encode(b"GIF89a").decode()}}, "mask cannot be read; expected"),
        ({"mask": 3}, "mask cannot be read; expected"),
        ({"anomaly_map": "heatmap"}, r"anomaly_map is a PNG of mode RGB and size \[30, 40\]; expected mode I;16"),
        ({"regions": [{}]}, "A region is {}; expected"),
    ],
)
def test_dicts_that_are_no_result(result, change, message):
    encoded = result.to_dict()
    change = {name: encoded[value] if value == "heatmap" else value for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        decode_result({**encoded, **change})
    with pytest.raises(ValueError, match="expected a dict with score, label and size"):
        decode_result([])


def test_the_pipeline_returns_results(model, image_processor, photo):
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    threshold = (0.5, float(np.median(detector.decision_map(photo)["anomaly_map"])))
    options = {"threshold": threshold, "regions": True, "heatmap": True}
    for result in (detector(photo, **options), detector([photo, photo], **options)[1], *detector(iter([photo]))):
        assert type(result) is AnomalyDetectionResult
        assert type(result["score"]) is float
        assert json.loads(result.to_json())["size"] == [40, 60]
    result = detector(photo, **options)
    assert 0 < result["mask"].mean() < 1
    assert result["regions"]
    decoded = decode_result(json.loads(result.to_json()))
    np.testing.assert_array_equal(decoded["mask"], result["mask"])
    assert decoded["regions"] == result["regions"]


def test_needs_numpy_and_pillow_only():
    """The files can be used on their own, without the rest of the package, torch and transformers."""
    folder = ROOT / "src" / "vip2clip_hf" / "models" / "vip2clip"
    code = f"""
import sys, types
for name in ("torch", "transformers", "scipy", "vip2clip_hf"):
    sys.modules[name] = None
parts = types.ModuleType("parts")
parts.__path__ = [{str(folder)!r}]
sys.modules["parts"] = parts
from parts.results_vip2clip import AnomalyDetectionResult
import numpy
print(AnomalyDetectionResult(score=0.5, label="normal", mask=numpy.zeros((2, 2))).to_json())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    expected = {"score": 0.5, "label": "normal", "size": [2, 2], "mask": {"size": [2, 2], "counts": "4"}}
    assert json.loads(done.stdout or "{}") == expected, done.stderr
