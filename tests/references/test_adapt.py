"""From photos of good parts to a checkpoint that uses them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from helpers.good_photos import bad_photo, good_photo, write_photos, write_tiny_checkpoint
from vip2clip_hf import AnomalyDetectionPipeline, ReferenceBank, adapt
from vip2clip_hf.calibration import synthetic_defects
from vip2clip_hf.calibration.rates import smallest_rate
from vip2clip_hf.checkpoints.card import GENERATED, write_card
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold
from vip2clip_hf.references import adapting, photos as photo_module, saving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(autouse=True)
def few_synthetic_defects(monkeypatch):
    """Most of the time is spent on them."""
    monkeypatch.setattr(synthetic_defects, "MAX_PHOTOS", 6)


@pytest.fixture
def good(tmp_path):
    return write_photos(tmp_path / "good", 20)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_a_checkpoint(checkpoint, good, tmp_path, monkeypatch):
    before = contents(checkpoint)
    monkeypatch.setattr(synthetic_defects, "MAX_PHOTOS", 24)
    found = adapt(checkpoint, good, tmp_path / "part", device="cpu")
    assert contents(checkpoint) == before
    assert (len(found.bank), found.num_split, found.outliers) == (20, 0, [])
    assert found.false_alarm_rate == 0.05
    assert found.image_threshold == max(found.scores.values())
    assert found.pixel_threshold == max(found.peaks.values())
    assert found.deciding["image"] == [max(found.scores, key=found.scores.get)]
    bank = ReferenceBank.from_pretrained(tmp_path / "part")
    assert bank.checksum() == found.bank.checksum()
    assert [photo.name for photo in bank.photos] == [f"{number:02d}.png" for number in range(20)]
    for detector in (
        AnomalyDetectionPipeline.from_pretrained(tmp_path / "part", device="cpu"),
        pipeline("anomaly-detection", model=str(tmp_path / "part"), device="cpu"),
    ):
        assert detector.decision == found.decision
        normal, anomalous = detector([good_photo(100), bad_photo(101)])
        assert (normal["label"], anomalous["label"]) == ("normal", "anomalous")
        assert anomalous["p_value"] == 1 / 21
        assert normal["p_value"] > 0.05
        assert anomalous["mask"].any()
        assert not normal["mask"].any()
    card = (tmp_path / "part" / "README.md").read_text()
    assert "compares images with 20 photos of good" in card
    assert "from the scores of 20 references, each compared with the others. About 5 %" in card
    assert "01.png" not in card
    write_card(tmp_path / "part", {})
    assert "## References" in (tmp_path / "part" / "README.md").read_text()
    report = (tmp_path / "part" / "report.html").read_text()
    assert report.count("data:image/webp;base64,") >= 2 * 24
    assert "<script" not in report
    assert json.loads(json.dumps(found.to_dict()))["synthetic"]["num_photos"] == 24
    assert found.synthetic_counts(0.12)["detected"] > found.synthetic_counts(0.12)["num_photos"] / 2


def test_scores_are_those_of_the_references_left_out(checkpoint, good):
    found = adapt(checkpoint, good, device="cpu")
    detector = AnomalyDetectionPipeline.from_pretrained(checkpoint, device="cpu")
    bank = ReferenceBank.from_images(detector.model, detector.image_processor, good)
    assert found.folder is None
    assert found.bank.checksum() == bank.checksum()
    assert found.scores == {one.photo.name: one.score for one in bank.left_out()}
    assert found.peaks == {one.photo.name: float(one.anomaly_map.max()) for one in bank.left_out()}
    assert found.image_threshold == conformal_threshold(list(found.scores.values()), 0.05)


def test_a_pipeline_is_not_changed(checkpoint, good, tmp_path):
    detector = AnomalyDetectionPipeline.from_pretrained(checkpoint, device="cpu", tile_size=32)
    settings, decision = detector.score_settings(), detector.decision
    found = adapt(detector, [str(path) for path in sorted(good.iterdir())], tmp_path / "part")
    assert (detector.score_settings(), detector.references) == (settings, None)
    assert detector.model.decision is decision
    assert detector.image_processor.decision == decision
    assert found.bank.options.tile_size == 32
    loaded = AnomalyDetectionPipeline.from_pretrained(tmp_path / "part", device="cpu")
    assert loaded.score_settings() == {**settings, "references": found.bank.checksum()}
    assert loaded(bad_photo(3))["p_value"] == 1 / 21
    with pytest.raises(ValueError, match="is set with a pipeline"):
        adapt(detector, good, tile_size=32)


@pytest.mark.parametrize("count", [2, 3, 5, 18])
def test_few_photos(checkpoint, tmp_path, count):
    folder = write_photos(tmp_path / "good", count)
    found = adapt(checkpoint, folder, device="cpu")
    assert found.false_alarm_rate == smallest_rate(count)
    assert found.image_threshold == max(found.scores.values())
    assert any("needs at least 19 photos" in note for note in found.notes)
    with pytest.raises(ValueError, match=f"at least 19 photos of good parts, found {count}"):
        adapt(checkpoint, folder, false_alarm_rate=0.05, device="cpu")


def test_one_photo_is_not_calibrated(checkpoint, tmp_path):
    folder = write_photos(tmp_path / "good", 1)
    for number in range(3):  # identical photos are one reference
        shutil.copy(folder / "00.png", folder / f"copy{number}.png")
    found = adapt(checkpoint, folder, tmp_path / "part", device="cpu")
    assert len(found.bank) == 1
    assert found.identical == {f"copy{number}.png": "00.png" for number in range(3)}
    assert (found.image_threshold, found.pixel_threshold, found.decision.calibration) == (0.5, 0.5, None)
    assert found.false_alarm_rate is found.rate_interval is None
    assert not found.synthetic
    assert "no threshold can be chosen" in found.notes[-1]
    assert "no threshold can be chosen" in (tmp_path / "part" / "report.html").read_text()
    result = AnomalyDetectionPipeline.from_pretrained(tmp_path / "part", device="cpu")(bad_photo(1))
    assert result.get("p_value") is None
    with pytest.raises(ValueError, match="needs at least 9 photos of good parts, found 1"):
        adapt(checkpoint, folder, false_alarm_rate=0.1, device="cpu")


def test_no_photos(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no images"):
        adapt(checkpoint, tmp_path / "empty", device="cpu")
    with pytest.raises(ValueError, match="expected at least one photo"):
        adapt(checkpoint, [], device="cpu")
    with pytest.raises(ValueError, match="is not a folder"):
        adapt(checkpoint, tmp_path / "absent", device="cpu")
    (tmp_path / "empty" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"None of the 1 photos can be used as a reference: .*broken.png"):
        adapt(checkpoint, tmp_path / "empty", device="cpu")


def test_outliers(checkpoint, good, tmp_path, caplog):
    clean = adapt(checkpoint, good, device="cpu")
    bad_photo(30).save(good / "<b>30&.png")
    found = adapt(checkpoint, good, tmp_path / "part", device="cpu")
    assert found.outliers == ["<b>30&.png"]
    assert found.deciding["image"] == found.outliers
    assert found.image_threshold > clean.image_threshold
    report = (tmp_path / "part" / "report.html").read_text()
    assert "&lt;b&gt;30&amp;.png" in report
    assert "<b>30" not in report
    for options in ({"drop_outliers": True}, {"drop": ["<b>30&.png"]}):
        dropped = adapt(checkpoint, good, device="cpu", **options)
        assert (dropped.outliers, dropped.dropped) == ([], ["<b>30&.png"])
        assert dropped.bank.checksum() == clean.bank.checksum()
        assert dropped.decision.to_dict() == clean.decision.to_dict()
    kept = adapt(checkpoint, good, device="cpu", keep=["<b>30&.png"], drop_outliers=True)
    assert (kept.outliers, kept.kept, kept.dropped) == ([], ["<b>30&.png"], [])
    assert kept.image_threshold == found.image_threshold
    with pytest.raises(ValueError, match=r"drop contains 'x\.png', which is not the name of a photo"):
        adapt(checkpoint, good, device="cpu", drop=["x.png"])
    with pytest.raises(ValueError, match="is in keep and in drop"):
        adapt(checkpoint, good, device="cpu", drop=["01.png"], keep=["01.png"])


def test_an_outlier_among_five_photos(checkpoint, tmp_path):
    folder = write_photos(tmp_path / "good", 4, 4)
    bad_photo(30).save(folder / "bad.png")
    assert adapt(checkpoint, folder, device="cpu").outliers == ["bad.png"]


def test_outliers_of_a_reduced_bank(checkpoint, good):
    """Features of single photos are not known any more, so the references are built again."""
    bad_photo(30).save(good / "bad.png")
    found = adapt(checkpoint, good, device="cpu", drop_outliers=True, max_patches=60)
    assert found.dropped == ["bad.png"]
    assert found.bank.reduced
    assert found.bank.features.shape[1] == 60


def test_near_duplicates_and_unreadable_photos(checkpoint, tmp_path, monkeypatch):
    folder = write_photos(tmp_path / "good", 6)
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    large = large.resize((160, 120), Image.Resampling.BICUBIC)
    large.save(folder / "a.png")
    large.save(folder / "b.jpg", quality=85)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no photo")
    found = adapt(checkpoint, folder, tmp_path / "part", device="cpu")
    assert found.near_duplicates == [("b.jpg", "a.png")]
    assert list(found.unreadable) == ["broken.png"]
    assert len(found.bank) == 8
    report = (tmp_path / "part" / "report.html").read_text()
    assert "b.jpg and a.png" in report
    assert "broken.png" in report


def test_many_photos_are_split(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(photo_module, "MAX_REFERENCES", 20)
    folder = write_photos(tmp_path / "good", 48)
    shutil.copy(folder / "00.png", folder / "01.png")  # a reference and the other photos
    (folder / "03.png").write_bytes(b"no image")
    found = adapt(checkpoint, folder, tmp_path / "part", device="cpu")
    references = {photo.name for photo in found.bank.photos}
    assert len(references) == 20
    assert not references & set(found.scores)
    assert found.num_split == len(found.scores) == 26
    assert (found.identical, list(found.unreadable)) == ({"01.png": "00.png"}, ["03.png"])
    assert any("20 of the 48 photos are references; the other 28 choose the thresholds" in one for one in found.notes)
    detector = AnomalyDetectionPipeline.from_pretrained(tmp_path / "part", device="cpu")
    for name in ("05.png", "47.png"):
        assert detector(str(folder / name))["score"] == pytest.approx(found.scores[name], abs=1e-6)
    assert "split conformal" in (tmp_path / "part" / "README.md").read_text()
    # Outliers among them are found and dropped as well.
    bad_photo(5).save(folder / "05.png")
    assert adapt(checkpoint, folder, device="cpu").outliers == ["05.png"]
    dropped = adapt(checkpoint, folder, tmp_path / "again", device="cpu", drop_outliers=True)
    assert dropped.dropped == ["05.png"]
    assert "05.png" not in dropped.scores


def test_rotations_and_aligned(checkpoint, good):
    few = sorted(good.iterdir())[:4]
    plain, turned = (adapt(checkpoint, few, device="cpu", rotations=one) for one in (False, True))
    assert turned.bank.features.shape[1] == 8 * plain.bank.features.shape[1]
    assert adapt(checkpoint, good, device="cpu", aligned=True).bank.options.aligned


def test_an_interruption_leaves_nothing(checkpoint, good, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapt(checkpoint, good, tmp_path / "part", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]


def test_existing_folder(checkpoint, good, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "other.txt").write_text("keep")
    with pytest.raises(OSError, match="exists and is not empty"):
        adapt(checkpoint, good, tmp_path / "part", device="cpu")
    assert contents(tmp_path / "part") == {"other.txt": b"keep"}


# Updates


@pytest.fixture
def part(checkpoint, tmp_path):
    adapt(checkpoint, write_photos(tmp_path / "first", 10), tmp_path / "part", device="cpu")
    return tmp_path / "part"


def test_update(checkpoint, part, tmp_path, good):
    (part / "notes").mkdir()
    (part / "notes" / "mine.txt").write_text("keep")
    # 10 known photos, and 10 new ones.
    found = adapt(part, good, update=True, device="cpu")
    assert sorted(found.known) == [f"{number:02d}.png" for number in range(10)]
    whole = adapt(checkpoint, good, device="cpu")
    assert found.bank.photos == whole.bank.photos
    assert found.scores == pytest.approx(whole.scores, abs=1e-3)  # another batch, other rounding
    assert found.image_threshold == max(found.scores.values())
    assert found.false_alarm_rate == 0.05  # the rate of before was the best that 10 photos allow
    assert ReferenceBank.from_pretrained(part).checksum() == found.bank.checksum()
    assert (part / "notes" / "mine.txt").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "good", "part"]
    assert AnomalyDetectionPipeline.from_pretrained(part, device="cpu")(bad_photo(3))["p_value"] == 1 / 21


def test_update_with_nothing_new(part, tmp_path):
    before = ReferenceBank.from_pretrained(part).checksum()
    found = adapt(part, tmp_path / "first", update=True, device="cpu")
    assert len(found.known) == 10
    assert found.bank.checksum() == before
    assert not found.synthetic


def test_update_keeps_options_and_rate(checkpoint, tmp_path):
    good = write_photos(tmp_path / "good", 4)
    adapt(checkpoint, good, tmp_path / "part", rotations=True, tile_size=32, false_alarm_rate=0.2, device="cpu")
    found = adapt(tmp_path / "part", write_photos(tmp_path / "more", 2, 40), update=True, device="cpu")
    assert (found.bank.options.rotations, found.bank.options.tile_size, len(found.bank)) == (True, 32, 6)
    assert found.false_alarm_rate == 0.2
    with pytest.raises(ValueError, match="rotations is set together with update"):
        adapt(tmp_path / "part", good, update=True, rotations=True, device="cpu")


def test_update_with_equal_names(part, tmp_path):
    """Another photo of the same name gets another one."""
    other = write_photos(tmp_path / "other", 1)
    good_photo(77).save(other / "00.png")
    found = adapt(part, other, update=True, device="cpu")
    assert "00.png (2)" in [photo.name for photo in found.bank.photos]
    assert {one.name for one in found.synthetic} == {"00.png (2)"}
    assert adapt(part, None, update=True, drop=["00.png (2)"], device="cpu").dropped == ["00.png (2)"]
    assert len(ReferenceBank.from_pretrained(part)) == 10


def test_update_keeps_a_card_of_the_user(part, good):
    card = part / "README.md"
    card.write_text(card.read_text().replace(GENERATED, "Mine."))
    adapt(part, good, update=True, device="cpu")
    assert "Mine." in card.read_text()


def test_update_does_not_remove_files_of_the_code(part, good):
    adapt(part, good, update=True, device="cpu")
    assert (part / "modeling_vip2clip.py").is_file()


def test_an_interrupted_update_keeps_the_old_checkpoint(part, good, tmp_path, monkeypatch):
    before = contents(part)

    def fail(self, target):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(adapting, "write_report", fail)
        with pytest.raises(TypeError):
            adapt(part, good, update=True, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(saving.Path, "rename", fail)
        with pytest.raises(OSError, match="disk full"):
            adapt(part, good, update=True, device="cpu")
    assert contents(part) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "good", "part"]


def test_only_adapted_checkpoints_are_updated(checkpoint, good, tmp_path):
    with pytest.raises(OSError, match="has no references; expected a checkpoint folder written by adapt"):
        adapt(checkpoint, good, update=True, device="cpu")
    with pytest.raises(OSError, match="is not a checkpoint folder"):
        adapt(tmp_path, good, update=True, device="cpu")
    with pytest.raises(ValueError, match="output is set together with update"):
        adapt(checkpoint, good, tmp_path / "part", update=True, device="cpu")


def test_after_defects_an_update_says_that_the_threshold_changes(checkpoint, part, good, tmp_path):
    bad = write_photos(tmp_path / "bad", 5, 60, bad_photo)
    assert adapt(part, None, update=True, defects=bad, device="cpu").decision.calibration["method"] == "f1"
    found = adapt(part, good, update=True, device="cpu")
    assert found.decision.calibration["method"] == "conformal"
    assert any("pass defects (--defects) again" in note for note in found.notes)


def test_after_a_calibration_an_update_says_that_the_thresholds_change(part, good):
    """Thresholds of other photos, and the smallest region, were replaced without a word."""
    model = AnomalyDetectionPipeline.from_pretrained(part, device="cpu").model
    calibration = {**model.decision.calibration, "leave_one_out": False}
    dataclasses.replace(model.decision, calibration=calibration, min_region_area=0.01).save_pretrained(part)
    notes = adapt(part, good, update=True, device="cpu").notes
    assert any("chosen from photos that are not references" in note for note in notes)
    assert any("min_region_area of the checkpoint is 0.01" in note for note in notes)
