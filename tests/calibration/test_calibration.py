"""Calibration: from images to thresholds in the configuration and the model card, and the resulting decisions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    DecisionConfig,
    ReferenceBank,
    ViP2ClipConfig,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
)
from vip2clip_hf.calibration.from_labels import calibrate_labelled
from vip2clip_hf.calibration.from_normal import calibrate
from vip2clip_hf.calibration.saving import save_calibration
from vip2clip_hf.checkpoints.card import describe_calibration
from vip2clip_hf.cli import app
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold, region_score


@pytest.fixture
def detector() -> AnomalyDetectionPipeline:
    """A model with scores that differ between images, and maps that vary around their mean."""
    model = ViP2ClipForAnomalyDetection(tiny_config("release", smoothing_sigma=1.0)).eval()
    change_weights(model)
    with torch.no_grad():
        model.clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
        for parameter in (*model.prompt_learner.parameters(), *model.fine_grained_perception.parameters()):
            parameter.mul_(5)
    return AnomalyDetectionPipeline(model=model, image_processor=ViP2ClipImageProcessor(size=48), device="cpu")


def random_images(count: int, seed: int = 0, size: tuple[int, int] = (40, 60)) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "normal"
    folder.mkdir()
    for number, image in enumerate(random_images(24)):
        image.save(folder / f"{number:02d}.png")
    return folder


def test_thresholds_follow_from_the_scores(detector, photos):
    found = calibrate(detector, photos, 0.1)
    results = [detector.decision_map(str(path)) for path in sorted(photos.iterdir())]
    assert found.image_threshold == conformal_threshold([one["score"] for one in results], 0.1)
    assert found.pixel_threshold == conformal_threshold([one["anomaly_map"].max() for one in results], 0.1)
    content = found.decision.calibration
    assert (content["method"], content["false_alarm_rate"]) == ("conformal", 0.1)
    assert content["num_images"] == len(found.decision.pixel_scores) == 24
    assert found.decision.image_scores.tolist() == sorted(one["score"] for one in results)
    assert found.decision.pixel_scores.tolist() == sorted(one["anomaly_map"].max() for one in results)
    assert content["settings"] == {"tile_size": 0, "tile_overlap": 0.25, "top_k": 5}
    assert detector.model.decision.calibration is None  # until it is applied
    content = found.decision.to_dict()
    assert json.loads(json.dumps(content)) == content


@pytest.mark.parametrize("area", [0.0, 0.02])
def test_rate_on_the_calibration_images(detector, photos, area):
    """Of n images, at most rate x (n + 1) - 1 are above the threshold, also at the size of the photos."""
    found = calibrate(detector, photos, 0.2, min_region_area=area)
    found.apply(detector.model)
    results = detector(str(photos), regions=True)
    assert sum(result["label"] == "anomalous" for result in results) == 4
    assert sum(result["p_value"] <= 0.2 for result in results) == 4
    marked = sum(result["mask"].any() for result in results)
    assert marked <= 4
    for result in results:
        assert bool(result["regions"]) == result["mask"].any()
    # Regions below the minimum area do not appear in the mask.
    maps = [detector.decision_map(str(path))["anomaly_map"] for path in sorted(photos.iterdir())]
    least = max(1, int(np.ceil(area * 48 * 48)))
    alarmed = [region_score(one, least) > found.pixel_threshold for one in maps]
    for result, alarm in zip(results, alarmed):
        assert alarm or not result["mask"].any()


def test_minimum_area_lowers_the_pixel_threshold(detector, photos):
    any_pixel, large = (calibrate(detector, photos, 0.2, min_region_area=area) for area in (0.0, 0.05))
    assert large.pixel_threshold < any_pixel.pixel_threshold


def test_false_alarms_on_new_images(detector):
    """Check the guarantee with a model: 200 new images after a calibration on 99."""
    found = calibrate(detector, random_images(99, seed=1), 0.1)
    found.apply(detector.model)
    results = list(detector(random_images(200, seed=2), batch_size=8))
    for alarms in (
        sum(result["label"] == "anomalous" for result in results),
        sum(result["mask"].any() for result in results),
    ):
        # The rate for these calibration images has a standard deviation of 0.03 (beta distribution); the count of
        # alarms adds further variance.
        assert alarms / 200 <= 0.1 + 3 * np.hypot(0.03, np.sqrt(0.09 / 200))


def test_too_few_images_are_refused_at_once(detector, photos, monkeypatch):
    monkeypatch.setattr(detector, "decision_map", None)
    with pytest.raises(ValueError, match="at least 99 normal images, found 24"):
        calibrate(detector, photos, 0.01)


@pytest.mark.parametrize("rate", [0, 1, 2, -1, float("nan")])
def test_invalid_rate(detector, photos, rate):
    with pytest.raises(ValueError, match="false_alarm_rate"):
        calibrate(detector, photos, rate)


def test_other_invalid_arguments(detector, photos):
    with pytest.raises(ValueError, match="min_region_area is 1"):
        calibrate(detector, photos, 0.1, min_region_area=1)
    with pytest.raises(ValueError, match="is not a folder"):
        calibrate(detector, photos / "00.png", 0.1)


def test_unreadable_images_are_skipped_and_listed(detector, photos):
    (photos / "broken.png").write_bytes(b"no image")
    found = calibrate(detector, photos, 0.1)
    assert list(found.unreadable) == [str(photos / "broken.png")]
    assert found.decision.calibration["num_images"] == 24
    for path in sorted(photos.iterdir())[:16]:
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="at least 9 normal images, found 8"):
        calibrate(detector, photos, 0.1)


def test_images_that_look_anomalous_are_listed(detector, photos, monkeypatch):
    scores = iter([0.1, 0.11, 0.09, 0.12, 0.1, 0.13, 0.08, 0.1, 0.97, 0.11, 0.99, 0.1])
    monkeypatch.setattr(
        detector, "decision_map", lambda image: {"score": next(scores), "anomaly_map": np.zeros((4, 4))}
    )
    monkeypatch.setattr(detector, "load", lambda image: image)  # there are no such files
    names = [f"{number}.png" for number in range(12)]
    found = calibrate(detector, names, 0.1)
    assert found.suspicious == ["10.png", "8.png"]


def test_labelled_images(detector, tmp_path):
    root = write_dataset(tmp_path / "set", ("dots",), num_normal=8, num_anomalous=2, size=48, seed=3)
    dataset = load_folder(root)
    labels = np.array(dataset["label"])
    scores = np.array([detector.decision_map(row["image"])["score"] for row in dataset])
    best = calibrate_labelled(detector, dataset)

    def f1(threshold):
        found = scores > threshold
        return 2 * (found & (labels == 1)).sum() / (found.sum() + labels.sum())

    assert f1(best.image_threshold) == pytest.approx(max(f1(np.nextafter(one, 0)) for one in scores))
    assert best.decision.calibration["method"] == "f1"
    for recall in (0.5, 0.9, 1.0):
        found = calibrate_labelled(detector, dataset, recall=recall)
        anomalous = scores[labels == 1]
        above = anomalous > found.image_threshold
        assert above.mean() >= recall
        assert (anomalous > anomalous[above].min()).mean() < recall  # no larger threshold would do
        assert 0 <= found.pixel_threshold < 1
    best.apply(detector.model)
    assert "p_value" not in detector(dataset[0]["image"])
    with pytest.raises(ValueError, match=r"recall is 0"):
        calibrate_labelled(detector, dataset, recall=0)
    with pytest.raises(ValueError, match="8 normal images, 0 anomalous images"):
        calibrate_labelled(detector, dataset.select(np.flatnonzero(labels == 0)))


@pytest.fixture
def checkpoint(detector, tmp_path):
    folder = tmp_path / "checkpoint"
    save_checkpoint(detector.model, detector.image_processor, folder)
    return folder


def test_saved_in_a_copy(detector, photos, checkpoint, tmp_path):
    found = calibrate(detector, photos, 0.1)
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert save_calibration(found, checkpoint, tmp_path / "calibrated") == tmp_path / "calibrated"
    assert before == {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    loaded = AnomalyDetectionPipeline.from_pretrained(tmp_path / "calibrated", device="cpu")
    assert loaded.model.decision == loaded.image_processor.decision == found.decision
    assert loaded.model.decision.image_threshold == found.image_threshold
    result = loaded(str(photos / "03.png"))
    assert 0 < result["p_value"] <= 1
    assert (result["p_value"] <= 0.1) == (result["label"] == "anomalous")
    card = (tmp_path / "calibrated" / "README.md").read_text()
    assert "## Decision" in card
    assert "from 24 normal images" in card
    with pytest.raises(OSError, match="not empty"):
        save_calibration(found, checkpoint, tmp_path / "calibrated")


def test_saved_in_place_twice(detector, photos, checkpoint):
    save_calibration(calibrate(detector, photos, 0.2), checkpoint)
    found = calibrate(detector, photos, 0.1)
    save_calibration(found, checkpoint)
    card = (checkpoint / "README.md").read_text()
    assert card.count("## Decision") == 1
    assert "called anomalous with a probability of at most 0.1." in card
    assert "## Citation" in card
    assert "auto_map" in json.loads((checkpoint / "config.json").read_text())
    # It is kept when the model is saved again.
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint)
    save_checkpoint(model, detector.image_processor, checkpoint.parent / "again")
    again = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint.parent / "again")
    assert again.decision == found.decision
    assert "## Decision" in (checkpoint.parent / "again" / "README.md").read_text()
    with pytest.raises(OSError, match=r"does not contain config\.json; expected a checkpoint folder"):
        save_calibration(found, checkpoint.parent)


def test_no_p_value_with_other_settings(detector, photos, caplog):
    calibrate(detector, photos, 0.1).apply(detector.model)
    photo = str(photos / "00.png")
    assert detector(photo)["p_value"] is not None
    assert detector(photo, top_k=2)["p_value"] is None
    assert detector(photo, tile_size=20)["p_value"] is None


def test_tiles_of_the_calibration_are_used(detector, photos):
    tiled = AnomalyDetectionPipeline(
        model=detector.model, image_processor=detector.image_processor, device="cpu", tile_size=20, tile_overlap=0.5
    )
    found = calibrate(tiled, photos, 0.1)
    assert found.decision.calibration["settings"] == {"tile_size": 20, "tile_overlap": 0.5, "top_k": 5}
    plain = detector(str(photos / "00.png"))
    found.apply(detector.model)
    result = detector(str(photos / "00.png"))
    assert result["p_value"] is not None
    assert result["score"] == pytest.approx(tiled(str(photos / "00.png"))["score"])
    assert result["score"] != plain["score"]
    assert detector(str(photos / "00.png"), tile_size=0)["score"] == pytest.approx(plain["score"])


@pytest.mark.parametrize(
    "content",
    [
        {"image": {"num_images": 0, "scores": []}},
        {"image": {"num_images": 3, "scores": [0.1, 0.2]}},
        {"image": {"num_images": 3, "scores": [0.3, 0.2, 0.1]}},
        {"pixel": {"scores": [0.1]}},
    ],
)
def test_damaged_calibration_of_an_old_checkpoint_is_refused(content, tmp_path):
    config = {**tiny_config().to_dict(), "calibration": content}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="calibration"):
        DecisionConfig.from_pretrained(tmp_path)
    ViP2ClipConfig.from_pretrained(tmp_path)


def test_no_section_without_calibration():
    assert describe_calibration(DecisionConfig()) is None


# References


@pytest.fixture
def bank(detector) -> ReferenceBank:
    return ReferenceBank.from_images(detector.model, detector.image_processor, random_images(5, seed=9))


def test_calibrated_with_references(detector, photos, bank):
    zero_shot = calibrate(detector, photos, 0.1)
    assert "references" not in zero_shot.decision.calibration["settings"]
    detector.model.references = bank
    found = calibrate(detector, photos, 0.1)
    scores = [detector.decision_map(str(path))["score"] for path in sorted(photos.iterdir())]
    assert found.image_threshold == conformal_threshold(scores, 0.1) != zero_shot.image_threshold
    assert found.decision.calibration["settings"]["references"] == bank.checksum()
    found.apply(detector.model)
    photo = str(photos / "00.png")
    assert detector(photo)["p_value"] == (1 + sum(score >= scores[0] for score in scores)) / 25
    # The thresholds belong to scores with these references.
    others = ReferenceBank.from_images(detector.model, detector.image_processor, random_images(3, seed=8))
    assert detector(photo, references=None)["p_value"] is None
    assert detector(photo, references=others)["p_value"] in (0.25, 0.5, 0.75, 1.0)  # from the left-out references
    zero_shot.apply(detector.model)
    assert detector(photo, references=None)["p_value"] is not None
    assert detector(photo)["p_value"] * 6 == pytest.approx(round(detector(photo)["p_value"] * 6))


def test_photos_among_the_references_are_left_out(detector, photos, caplog):
    plain = calibrate(detector, photos, 0.1).decision.calibration
    paths = sorted(photos.iterdir())
    detector.model.references = ReferenceBank.from_images(
        detector.model, detector.image_processor, [Image.open(path).copy() for path in paths[:3]]
    )
    others = [str(path) for path in paths[3:]]
    expected = calibrate(detector, others, 0.1)
    assert "left out" not in caplog.text
    found = calibrate(detector, photos, 0.1)
    assert "3 images are among the references and are left out of the calibration" in caplog.text
    assert str(paths[0]) in caplog.text
    assert (plain["num_images"], found.decision.calibration["num_images"]) == (24, 21)
    assert found.decision.image_scores.tolist() == expected.decision.image_scores.tolist()
    with pytest.raises(ValueError, match="19"):
        calibrate(detector, [str(path) for path in paths[:20]], 0.05)


def test_labelled_photos_among_the_references_are_left_out(detector, tmp_path, caplog):
    dataset = load_folder(write_dataset(tmp_path / "set", ("dots",), num_normal=8, num_anomalous=2, size=48, seed=3))
    normal = [number for number, label in enumerate(dataset["label"]) if label == 0]
    rows = dataset.select(normal[:2])
    detector.model.references = ReferenceBank.from_images(detector.model, detector.image_processor, rows)
    found = calibrate_labelled(detector, dataset).decision
    assert "2 images are among the references" in caplog.text
    assert found.calibration["num_images"] == len(dataset) - 2
    expected = calibrate_labelled(detector, dataset.select([n for n in range(len(dataset)) if n not in normal[:2]]))
    assert found.image_threshold == expected.image_threshold
    assert found.pixel_threshold == expected.decision.pixel_threshold


def test_command_uses_the_tiles_of_the_references(detector, photos, tmp_path):
    detector.model.references = ReferenceBank.from_images(
        detector.model, detector.image_processor, random_images(4, seed=9), tile_size=30, tile_overlap=0.5
    )
    save_checkpoint(detector.model, detector.image_processor, tmp_path / "part")
    done = run("--model", tmp_path / "part", photos, "--false-alarm-rate", "0.1")
    assert done.exit_code == 0, done.output
    decision = DecisionConfig.from_pretrained(tmp_path / "part")
    assert (decision.tile_size, decision.tile_overlap) == (30, 0.5)
    assert decision.calibration["settings"]["references"] == detector.model.references.checksum()
    again = AnomalyDetectionPipeline.from_pretrained(tmp_path / "part", device="cpu")
    assert again(str(photos / "00.png"))["p_value"] is not None
    done = run("--model", tmp_path / "part", photos, "--false-alarm-rate", "0.1", "--tile-size", 20)
    assert "references were read with tile_size=30" in str(done.exception)


# vip2clip calibrate


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments), "--device", "cpu"])


def test_command(detector, photos, checkpoint, tmp_path):
    done = run("--model", checkpoint, photos, "--false_alarm_rate", "0.1", "--output", tmp_path / "new")
    assert done.exit_code == 0, done.output
    expected = calibrate(detector, photos, 0.1)
    assert f"image threshold {expected.image_threshold:.6f}" in done.stdout
    decision = json.loads((tmp_path / "new" / "decision.json").read_text())
    assert decision["image_scores"] == pytest.approx(expected.decision.image_scores.tolist(), abs=1e-6)
    assert not json.loads((checkpoint / "decision.json").read_text())["calibration"]
    assert (tmp_path / "new" / "config.json").read_text() == (checkpoint / "config.json").read_text()
    (photos / "broken.png").write_bytes(b"no image")
    done = run("--model", checkpoint, photos, "--false-alarm-rate", "0.1", "--json", "--tile-size", 20)
    assert done.exit_code == 3
    summary = json.loads(done.stdout)
    assert list(summary["unreadable"]) == [str(photos / "broken.png")]
    assert summary["tile_size"] == summary["calibration"]["settings"]["tile_size"] == 20
    assert not any("scores" in name for name in summary)
    assert json.loads((checkpoint / "decision.json").read_text())["image_threshold"] == summary["image_threshold"]


def test_command_with_labels(checkpoint, tmp_path):
    root = write_dataset(tmp_path / "set", ("dots",), num_normal=4, num_anomalous=2, size=48, seed=3)
    done = run("--model", checkpoint, root, "--recall", "0.9", "--output", tmp_path / "new")
    assert done.exit_code == 0, done.output
    card = (tmp_path / "new" / "README.md").read_text()
    assert "the largest thresholds that find at least 0.9 of the anomalous images and of the anomalous pixels" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'PHOTOS'"),
        (["x", "--f1", "--recall", "0.5"], "--f1 and --recall exclude each other"),
        (["x", "--f1", "--false-alarm-rate", "0.5"], "--false-alarm-rate is for photos of good parts"),
        (["x", "--f1", "--defects", "."], "--defects is for photos of good parts"),
        (["absent"], "is not a folder"),
        ([".", "--defects", "absent"], "is not a folder"),
        ([".", "--normal-label", "good"], "need a labelled dataset: add --f1 or --recall"),
        (["."], "is not changed: pass --output"),
        ([".", "--model", "org/name"], "is not changed: pass --output"),
    ],
)
def test_command_invalid_arguments(arguments, message):
    done = run(*arguments)
    assert message in " ".join(done.stderr.split()) or message in str(done.exception)


def test_command_checks_first(checkpoint, photos, tmp_path):
    few = run("--model", checkpoint, photos, "--false-alarm-rate", "0.01")
    assert "at least 99 normal images" in str(few.exception)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    done = run("--model", checkpoint, photos, "--output", tmp_path / "used")
    assert "not empty" in str(done.exception)
