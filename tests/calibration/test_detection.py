"""How many defects are found, and what would help."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from helpers.good_photos import bad_photo, write_photos, write_tiny_checkpoint
from vip2clip_hf import AnomalyDetectionPipeline, ReferenceBank, calibrate, estimate_detection
from vip2clip_hf.calibration import synthetic_defects
from vip2clip_hf.calibration.detection import CROSS_VALIDATION, PHOTOS, SAME_PHOTOS, SYNTHETIC, Detection, advice
from vip2clip_hf.calibration.rates import detection_interval
from vip2clip_hf.cli import app


pytestmark = pytest.mark.xdist_group("detection")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "good", 20)


@pytest.fixture(autouse=True)
def few_synthetic_defects(monkeypatch):
    monkeypatch.setattr(synthetic_defects, "MAX_PHOTOS", 6)


@pytest.fixture
def detector(checkpoint):
    return AnomalyDetectionPipeline.from_pretrained(checkpoint, device="cpu")


def test_the_interval_is_exact():
    for found, count in ((0, 1), (1, 1), (0, 24), (5, 10), (8, 50), (10, 10), (29, 32), (999, 1000)):
        expected = binomtest(found, count).proportion_ci(0.9, "exact")
        assert detection_interval(found, count) == pytest.approx((expected.low, expected.high), abs=1e-9)
    for found, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected at most the number of photos"):
            detection_interval(found, count)


def synthetic(size, score):
    return SimpleNamespace(size=size, score=score)


def test_synthetic_defects_are_counted_by_length():
    found = Detection.of_synthetic([synthetic(0.05, 0.2), synthetic(0.06, 0.9), synthetic(0.15, 0.8)], 0.5)
    assert (found.method, found.num_photos, found.num_found, found.interval) == (SYNTHETIC, 3, 2, None)
    assert [(size["num_found"], size["num_photos"]) for size in found.sizes] == [(1, 2), (1, 1)]
    assert not found.is_poor  # the large one is found
    assert Detection.of_synthetic([synthetic(0.05, 0.9), synthetic(0.15, 0.5)], 0.5).is_poor  # equal is not greater
    text = found.describe()
    assert "2 of 3 photos with a synthetic defect" in text
    assert "1 of 2 with a length of 4 to 12 % of the side, 1 of 1 with a length of 12 to 20 %" in text
    assert "\n" not in text


def test_descriptions_of_photos_of_defects():
    assert (
        "5 of 10 photos of defects are found (50 %). The true rate lies between 22 and 78 %"
        in Detection(PHOTOS, 10, 5).describe()
    )
    assert "by cross-validation" in Detection(CROSS_VALIDATION, 10, 5).describe()
    same = Detection(SAME_PHOTOS, 10, 10)
    assert "expect less on new ones" in same.describe()
    assert same.interval is None
    assert json.loads(json.dumps(Detection(PHOTOS, 10, 5).to_dict()))["interval"] == pytest.approx(
        [0.222, 0.778], abs=1e-3
    )


def model(width, side=320):
    vision = SimpleNamespace(hidden_size=width)
    return SimpleNamespace(config=SimpleNamespace(image_size=side, clip_config=SimpleNamespace(vision_config=vision)))


def test_advice():
    poor, good = Detection(PHOTOS, 10, 5), Detection(PHOTOS, 10, 8)
    one = {"num_good": 20, "has_references": False, "tile_size": 0, "photo_side": 2000}
    assert advice(good, model(192), **one) is None
    assert advice(None, model(192), **one) is None
    text = advice(poor, model(192), **one)
    assert "compare with photos of good parts (vip2clip adapt)" in text
    assert "use more photos of good parts (now 20)" in text
    assert "--tile-size 666" in text
    assert "CLIP ViT-L/14 (--model)" in text
    assert "train on photos of defects" in text
    assert "\n" not in text
    other = {"num_good": 500, "has_references": True, "tile_size": 400, "photo_side": 2000}
    assert advice(poor, model(1024), **other) == (
        "Many defects are missed. To find more: train on photos of defects (vip2clip train)."
    )
    assert "tile" not in advice(poor, model(1024), **{**other, "tile_size": 0, "photo_side": 400})


def test_estimate(detector, good, tmp_path):
    calibration = calibrate(detector, good, 0.05)
    paths = sorted(map(str, good.iterdir()))
    found = estimate_detection(detector, calibration, paths, seed=1)
    assert (found.method, found.num_photos) == (SYNTHETIC, 6)
    assert calibration.detection is found
    assert calibration.decision.calibration["detection"] == found.to_dict()
    assert estimate_detection(detector, calibration, paths, seed=1) == found
    calibration.decision.image_threshold = 0.0
    assert estimate_detection(detector, calibration, paths, seed=1).num_found == 6
    calibration.decision.image_threshold = 1.0
    assert estimate_detection(detector, calibration, paths, seed=1).num_found == 0
    assert estimate_detection(detector, calibration, []) is None
    calibration.unreadable.update(dict.fromkeys(paths, "broken"))
    assert estimate_detection(detector, calibration, paths) is None


def test_photos_of_defects(detector, good, tmp_path):
    calibration = calibrate(detector, good, 0.05)
    bad = sorted(map(str, write_photos(tmp_path / "bad", 4, 50, bad_photo).iterdir()))
    scores = [detector(path)["score"] for path in bad]
    calibration.decision.image_threshold = float(np.sort(scores)[1])
    (tmp_path / "bad" / "broken.png").write_bytes(b"no image")
    found = estimate_detection(detector, calibration, defects=[*bad, str(tmp_path / "bad" / "broken.png")])
    assert (found.method, found.num_photos, found.num_found) == (PHOTOS, 4, 2)
    assert list(calibration.unreadable) == [str(tmp_path / "bad" / "broken.png")]
    with pytest.raises(ValueError, match="No photo of a defect can be used"):
        estimate_detection(detector, calibration, defects=[str(tmp_path / "bad" / "broken.png")])


def test_references_are_not_changed(detector, good, caplog):
    paths = sorted(map(str, good.iterdir()))
    calibration = calibrate(detector, good, 0.05)
    detector.model.references = ReferenceBank.from_images(detector.model, detector.image_processor, paths)
    assert estimate_detection(detector, calibration, paths) is None  # all of them are references


def test_command(checkpoint, good, tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(
            app, ["calibrate", *map(str, arguments), "--model", str(checkpoint), "--device", "cpu"]
        )
        assert done.exit_code == 0, done.output
        return done

    done = run(good, "--output", tmp_path / "one")
    assert "Rough estimate of the detection: " in done.stdout
    decision = json.loads((tmp_path / "one" / "decision.json").read_text())["calibration"]
    assert decision["false_alarm_rate"] == 0.05
    assert decision["detection"]["method"] == SYNTHETIC
    assert "photos with a synthetic defect" in (tmp_path / "one" / "README.md").read_text()
    bad = write_photos(tmp_path / "bad", 4, 50, bad_photo)
    content = json.loads(run(good, "--output", tmp_path / "two", "--defects", bad, "--json").stdout)
    assert content["detection"]["num_photos"] == 4
    assert content["detection"] == content["calibration"]["detection"]
    low, high = content["detection"]["interval"]
    assert f"between {100 * low:.0f} and {100 * high:.0f} %" in (tmp_path / "two" / "README.md").read_text()


def test_a_labelled_dataset_is_not_a_folder_of_good_photos(checkpoint, tmp_path):
    write_photos(tmp_path / "set" / "good", 3)
    write_photos(tmp_path / "set" / "defect", 2, 50, bad_photo)
    done = CliRunner().invoke(
        app, ["calibrate", str(tmp_path / "set"), "--model", str(checkpoint), "--output", str(tmp_path / "new")]
    )
    assert done.exit_code == 2
    text = " ".join(done.stderr.replace("│", " ").split())
    assert "contains 2 photos that are labelled anomalous" in text
    assert "add --f1 or --recall" in text
    assert not (tmp_path / "new").exists()


def test_few_photos_choose_the_rate(checkpoint, tmp_path, caplog):
    few = write_photos(tmp_path / "few", 4)
    done = CliRunner().invoke(
        app, ["calibrate", str(few), "--model", str(checkpoint), "--output", str(tmp_path / "new"), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "new" / "decision.json").read_text())["calibration"]["false_alarm_rate"] == 0.2
    assert "4 photos allow a false-alarm rate of 20 % at best" in caplog.text
