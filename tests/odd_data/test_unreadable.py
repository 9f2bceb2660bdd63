"""Folders with images that cannot be read: every reader continues or lists all of them with reasons."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import tiny_config
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.app.results import PhotoInspector
from vip2clip_hf.calibration.from_labels import calibrate_labelled
from vip2clip_hf.calibration.from_normal import calibrate
from vip2clip_hf.cli import app
from vip2clip_hf.data.checks import check_data
from vip2clip_hf.data.loading import index_folder, load_folder
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.evaluation.runner import evaluate_sets
from vip2clip_hf.inference.prediction import predict_to_folder


RAMP = np.linspace(0, 255, 24 * 20).reshape(24, 20)
# Each bad file, and a part of the reason.
BAD = {
    "float.tif": "floats in [0, 1]",
    "negative.tif": "0 to 65535",
    "nan.tif": "NaN or infinity",
    "deep.png": "pass bit_depth=12",
    "stack.tif": "has 2 pages",
    "page.png": "cannot be read as an image",
    "half.jpg": "truncated or damaged",
    "empty.png": "is empty",
}


def write_bad(folder: Path):
    Image.fromarray(RAMP.astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(RAMP.astype(np.int32) - 100).save(folder / "negative.tif")
    Image.fromarray(np.full((24, 20), np.nan, np.float32)).save(folder / "nan.tif")
    Image.fromarray((RAMP * 16).astype(np.uint16)).save(folder / "deep.png")
    photo = Image.fromarray(RAMP.astype(np.uint8))
    photo.save(folder / "stack.tif", save_all=True, append_images=[photo.rotate(180)])
    (folder / "page.png").write_text("<html></html>")
    Image.effect_noise((60, 60), 90).save(folder / "half.jpg")
    (folder / "half.jpg").write_bytes((folder / "half.jpg").read_bytes()[:900])
    (folder / "empty.png").touch()


@pytest.fixture
def detector() -> AnomalyDetectionPipeline:
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    return AnomalyDetectionPipeline(model=model, image_processor=ViP2ClipImageProcessor(size=48), device="cpu")


@pytest.fixture
def root(tmp_path) -> Path:
    """Three normal and three anomalous images, and all bad files among the normal ones."""
    for seed, name in enumerate(("good", "bad")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng([seed, number]).integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    write_bad(tmp_path / "set" / "good")
    return tmp_path / "set"


def assert_lists_all(reasons: dict[str, str] | str):
    text = reasons if isinstance(reasons, str) else json.dumps(reasons)
    for name, reason in BAD.items():
        assert name in text
        assert reason in text


def test_calibration(detector, root):
    found = calibrate(detector, root / "good", 0.5)
    assert found.decision.calibration["num_images"] == 3
    assert {Path(name).name for name in found.unreadable} == set(BAD)
    assert_lists_all(found.unreadable)


def test_calibration_with_labels(detector, root, caplog):
    with pytest.raises(OSError, match=r"8 of 14 images could not be read.*--skip-unreadable") as raised:
        calibrate_labelled(detector, load_folder(root))
    assert_lists_all(str(raised.value))
    found = calibrate_labelled(detector, load_folder(root), skip_unreadable=True)
    assert len(found.unreadable) == 8
    assert found.decision.calibration["num_images"] == 6
    assert "Left out: 8 of 14 images" in caplog.text


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_evaluation(detector, root, batch_size, caplog):
    dataset = load_folder(root)
    parts = (detector.model, detector.image_processor, dataset)
    with pytest.raises(OSError, match="8 of 14 images could not be read") as raised:
        evaluate_model(*parts, batch_size=batch_size)
    assert_lists_all(str(raised.value))
    found = evaluate_model(*parts, batch_size=batch_size, skip_unreadable=True)
    assert_lists_all(found["unreadable"])
    assert sum(category["num_images"] for category in found["categories"].values()) == 6
    kept = dataset.select(
        [number for number, name in enumerate(dataset["image_id"]) if name not in found["unreadable"]]
    )
    expected = evaluate_model(detector.model, detector.image_processor, kept)
    assert found["mean"]["image_auroc"] == expected["mean"]["image_auroc"]
    assert "Left out: 8 of 14 images" in caplog.text


def test_evaluation_with_files(detector, root, tmp_path):
    source = DataSource("set", str(root))
    parts = (detector.model, detector.image_processor, [source], tmp_path / "out")
    with pytest.raises(OSError, match="8 of 14 images could not be read"):
        evaluate_sets(*parts, sheets=2)
    (result,) = evaluate_sets(*parts, sheets=2, skip_unreadable=True)  # resumes
    assert len(result["unreadable"]) == 8
    assert len((tmp_path / "out" / "set" / "scores.csv").read_text().splitlines()) == 7
    with pytest.raises(OSError, match="8 of 14 images could not be read"):  # as in a new folder
        evaluate_sets(*parts, sheets=2)
    with pytest.raises(ValueError, match="model is a Linear; expected a ViP2ClipForAnomalyDetection"):
        evaluate_sets(torch.nn.Linear(1, 1), detector.image_processor, [source], tmp_path / "other")


@pytest.mark.parametrize("tile_size", [0, 16])
def test_prediction(detector, root, tmp_path, tile_size):
    parts = (detector.model, detector.image_processor, root / "good", tmp_path / "out")
    Image.new("RGB", (1700, 20)).save(root / "good" / "strip.png")
    found = predict_to_folder(*parts, tile_size=tile_size, heatmaps=True)
    assert found["num_unreadable"] == 8 + bool(tile_size)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    errors = {row["id"]: row["error"] for row in table if row["error"] is not None}
    assert_lists_all(errors)
    if tile_size:
        assert "strip.png': The photo has 1700 x 20 pixels" in errors["strip.png"]


def test_prediction_with_bit_depth_and_page(detector, root, tmp_path):
    parts = (detector.model, detector.image_processor, root / "good", tmp_path / "out")
    found = predict_to_folder(*parts, bit_depth=12, heatmaps=True)
    assert found["num_unreadable"] == 8 - 2  # not deep.png and float.tif
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    row = next(row for row in table if row["id"] == "deep.png")
    assert row["score"] == pytest.approx(detector(RAMP * 16 / 4095)["score"], abs=1e-4)
    with pytest.raises(OSError, match="bit_depth"):
        predict_to_folder(*parts, bit_depth=14, heatmaps=True)


def test_app(detector, root):
    inspector = PhotoInspector(detector)
    results, problems = inspector.analyse([str(path) for path in sorted((root / "good").iterdir())])
    assert len(results) == 3
    assert_lists_all(dict(problems))


def test_check(root):
    found = check_data(index_folder(root))
    assert_lists_all(json.dumps(found.to_dict()))
    stated = check_data(index_folder(root), bit_depth=12)
    assert "deep.png" not in json.dumps(stated.to_dict())


def test_commands(detector, root, tmp_path, monkeypatch):
    monkeypatch.setattr(AnomalyDetectionPipeline, "from_pretrained", lambda *args, **options: detector)
    done = CliRunner().invoke(app, ["predict", str(root / "good"), "--json"])
    assert done.exit_code == 3, done.output
    entries = json.loads(done.stdout)
    assert sum("score" in entry for entry in entries) == 3
    assert_lists_all({entry["image"]: entry["error"] for entry in entries if "error" in entry})
