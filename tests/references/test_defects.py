"""Weight and threshold from photos of defects, measured by cross-validation."""

import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.good_photos import bad_photo, good_photo, write_photos, write_tiny_checkpoint
from vip2clip_hf import AnomalyDetectionPipeline, AnomalyMetrics, ReferenceBank, adapt
from vip2clip_hf.models.vip2clip.pipeline_steps_vip2clip import with_references
from vip2clip_hf.references.defect_photos import list_defects
from vip2clip_hf.references.defects import _choose, _cross_validate, choose_with_defects
from vip2clip_hf.references.photos import list_photos
from vip2clip_hf.references.pixel_choice import PixelChoice
from vip2clip_hf.references.scoring import rebuilt


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def detector(checkpoint):
    return AnomalyDetectionPipeline.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return write_photos(root / "good", 12), write_photos(root / "bad", 6, 50, bad_photo)


def test_best_weight_and_threshold():
    labels = np.array([0, 0, 0, 1, 1])
    evidence = np.array([[1.0, 2.0, 5.0, 4.0, 6.0], [1.0, 2.0, 3.0, 4.0, 6.0]])
    assert _choose(evidence, labels, None) == (1, 3.5)
    assert _choose(evidence[:1], labels, None) == (0, 3.0)  # one false alarm, no miss
    # A miss that costs little is accepted, and one that costs much is not.
    assert _choose(evidence[:1], labels, 0.5) == (0, 5.5)
    assert _choose(evidence[:1], labels, 3.0) == (0, 3.0)
    # Of equal weights, the first.
    assert _choose(evidence[[1, 1]], labels, None)[0] == 0


def test_cross_validation_does_not_measure_on_its_own_choice():
    """With evidence that means nothing, the best of many thresholds and weights looks better than it is."""
    rng, chosen, measured = np.random.default_rng(0), [], []
    labels = np.repeat([0, 1], 10)
    for seed in range(40):
        evidence = rng.normal(size=(4, 20))
        weight, threshold = _choose(evidence, labels, 1.0)
        chosen.append(np.mean((evidence[weight] > threshold) == labels))
        measured.append(np.mean(_cross_validate(evidence, labels, 1.0, seed) == labels))
    assert np.mean(chosen) > 0.65
    assert np.mean(measured) < 0.56
    assert _cross_validate(evidence[:, :11], labels[:11], None, 0) is None  # one photo of a defect


def test_chosen_values_are_those_of_the_pipeline(detector, folders):
    good, bad = folders
    bank = ReferenceBank.from_images(detector.model, detector.image_processor, good)
    best, threshold, report = choose_with_defects(detector, bank, list_photos(bad))
    assert (report.num_photos, report.detection, report.false_alarms, report.f1) == (6, 1.0, 0.0, 1.0)
    assert report.rule_weight == bank.weight
    assert best.weight == report.weight
    pipeline = with_references(detector, best)
    for name, score in report.scores.items():
        assert pipeline(str(bad / name))["score"] == pytest.approx(score, abs=1e-5)
        assert score > threshold
    assert all(one.score < threshold for one in best.left_out())


def test_a_useful_weight_is_chosen(detector, folders, monkeypatch):
    """The weight is the one of the candidates that separates the photos."""
    from vip2clip_hf.references import defects

    good, bad = folders
    bank = ReferenceBank.from_images(detector.model, detector.image_processor, good)
    chosen = []
    monkeypatch.setattr(defects, "_choose", lambda evidence, *_: chosen.append(evidence) or (3, float(evidence[3, 0])))
    best, _, report = choose_with_defects(detector, bank, list_photos(bad))
    assert report.weight == best.weight == best.options.weight == 2 * bank.weight
    assert chosen[-1].shape == (4, 18)
    assert rebuilt(best, weight=None).weight == bank.weight
    # It is kept when the bank is saved, merged and shortened.
    assert best.without(["00.png"]).weight == best.weight
    with pytest.raises(IndexError):  # there is one weight to choose from, not four
        choose_with_defects(detector, bank, list_photos(bad)[:4])
    assert chosen[-1].shape[0] == 1


def test_few_photos_of_defects_choose_the_threshold_only(checkpoint, folders, tmp_path, caplog):
    good, _ = folders
    bad = write_photos(tmp_path / "bad", 1, 50, bad_photo)
    found = adapt(checkpoint, good, tmp_path / "part", defects=bad, device="cpu")
    assert found.bank.options.weight is None
    assert found.defects.f1 is found.defects.detection is None
    assert any("1 photos of defects choose the image threshold only" in note for note in found.notes)
    detector = AnomalyDetectionPipeline.from_pretrained(tmp_path / "part", device="cpu")
    assert detector(str(bad / "50.png"))["label"] == "anomalous"
    assert detector.decision.calibration["method"] == "f1"
    assert "photos of defects" in (tmp_path / "part" / "README.md").read_text()


def test_bad_input(checkpoint, folders, tmp_path):
    good, bad = folders
    with pytest.raises(ValueError, match="miss_cost is set without defects"):
        adapt(checkpoint, good, miss_cost=2.0, device="cpu")
    with pytest.raises(ValueError, match="miss_cost is -1"):
        adapt(checkpoint, good, defects=bad, miss_cost=-1, device="cpu")
    one = write_photos(tmp_path / "one", 1)
    with pytest.raises(ValueError, match="expected at least 2 photos of good parts"):
        adapt(checkpoint, one, defects=bad, device="cpu")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="None of the 1 photos of defects can be used"):
        adapt(checkpoint, good, defects=tmp_path / "broken", device="cpu")


def write_masks(photos, folder, suffix="_mask"):
    """Write a mask for each photo: the pixels that differ from the good photo of the same number."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(photos.glob("*.png")):
        with Image.open(path) as bad:
            changed = np.asarray(bad) != np.asarray(good_photo(int(path.stem)))
        Image.fromarray(changed.any(axis=2)).save(folder / f"{path.stem}{suffix}.png")


@pytest.mark.slow
def test_masks_choose_the_pixel_threshold(checkpoint, detector, folders, tmp_path):
    good, bad = folders
    shutil.copytree(bad, tmp_path / "bad")
    write_masks(bad, tmp_path / "bad")
    (tmp_path / "bad" / "55_mask.png").unlink()
    found = adapt(checkpoint, good, tmp_path / "part", defects=tmp_path / "bad", device="cpu")
    assert (found.defects.num_photos, found.defects.num_masks) == (6, 5)  # also the photo without a mask
    pipeline, metrics = with_references(detector, found.bank), AnomalyMetrics()
    for path in sorted(bad.glob("*.png"))[:5]:
        result = pipeline.decision_map(str(path))
        with Image.open(tmp_path / "bad" / f"{path.stem}_mask.png") as mask:
            small = np.asarray(mask.resize(result["anomaly_map"].shape[::-1], Image.Resampling.NEAREST))
        metrics.update(np.ones(1), np.ones(1), result["anomaly_map"][None], small[None] > 0)
    for one in found.bank.left_out():
        metrics.update(np.zeros(1), np.zeros(1), one.anomaly_map[None], np.zeros((1, *one.anomaly_map.shape)))
    best = metrics.compute()["categories"]["all"]
    assert found.pixel_threshold == pytest.approx(best["pixel_f1_threshold"], abs=0.1)
    assert 0.3 < found.defects.pixel_f1 <= best["pixel_f1"] + 0.05
    decision = AnomalyDetectionPipeline.from_pretrained(tmp_path / "part", device="cpu").decision
    assert decision.pixel_threshold == pytest.approx(found.pixel_threshold)
    assert decision.calibration["num_masks"] == 5
    assert "largest F1 of pixels on 5 masks" in (tmp_path / "part" / "README.md").read_text()
    without = adapt(checkpoint, good, defects=bad, device="cpu")
    assert (without.defects.num_masks, without.defects.pixel_threshold) == (0, None)
    assert without.pixel_threshold != found.pixel_threshold


def test_only_the_anomalous_images_of_a_dataset_are_defects(folders, tmp_path):
    """Good photos in the folder would be taken for defects."""
    good, bad = folders
    shutil.copytree(good, tmp_path / "part" / "train" / "good")
    write_photos(tmp_path / "part" / "test" / "good", 3, 20)
    shutil.copytree(bad, tmp_path / "part" / "test" / "square")
    write_masks(bad, tmp_path / "part" / "ground_truth" / "square")
    listed, masks, notes = list_defects(tmp_path / "part")
    assert [photo.name for photo in listed] == [f"test/square/{number}.png" for number in range(50, 56)]
    assert set(masks) == {photo.name for photo in listed}
    assert masks["test/square/50.png"].endswith("50_mask.png")
    assert notes == ["6 of the 9 images in the folder of defects are labelled anomalous; the others are not used."]
    (tmp_path / "only" / "anomalous").mkdir(parents=True)
    write_photos(tmp_path / "only" / "normal", 2)
    with pytest.raises(ValueError, match="are labelled normal; expected photos of defects"):
        list_defects(tmp_path / "only")


def test_a_good_photo_among_those_of_defects_is_left_out(checkpoint, folders, tmp_path, caplog):
    """It is compared with itself, so the lowest score would become that of a defect."""
    good, bad = folders
    shutil.copytree(bad, tmp_path / "bad")
    shutil.copy(good / "03.png", tmp_path / "bad" / "extra.png")
    shutil.copy(bad / "50.png", tmp_path / "bad" / "twice.png")  # would be in two folds
    found = adapt(checkpoint, good, defects=tmp_path / "bad", device="cpu").defects
    assert found.identical == {"extra.png": "03.png", "twice.png": "50.png"}
    assert (found.num_photos, found.false_alarms) == (6, 0.0)
    assert "2 photos of defects have the same pixels" in caplog.text


def test_a_mask_that_cannot_be_read_is_reported(checkpoint, folders, tmp_path):
    good, bad = folders
    shutil.copytree(bad, tmp_path / "part" / "test" / "square")
    masks = tmp_path / "part" / "ground_truth" / "square"
    write_masks(bad, masks)
    (masks / "51_mask.png").write_bytes(b"no image")
    Image.new("L", (30, 20), 255).save(masks / "52_mask.png")
    found = adapt(checkpoint, good, defects=tmp_path / "part", device="cpu").defects
    assert (found.num_photos, found.num_masks) == (6, 4)
    assert set(found.unreadable) == {"mask of test/square/51.png", "mask of test/square/52.png"}


def test_pixel_f1_is_measured_on_other_maps():
    """A threshold that is best for one map only does not look good on others."""
    choice, rng = PixelChoice(), np.random.default_rng(0)
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 2:5] = True
    for number in range(10):
        level = 0.2 if number % 5 else 0.8  # of the first fold, larger values
        choice.add(np.where(mask, level, level / 2), mask)
        choice.add(rng.uniform(0, 0.05, (8, 8)))
    threshold, f1 = choice.choose()
    assert 0.1 < threshold < 0.2
    # In the first fold, all pixels of the maps are above the threshold.
    assert f1 == pytest.approx(2 * 90 / (2 * 90 + 2 * 55))
    single = PixelChoice()
    single.add(np.where(mask, 0.9, 0.1), mask)
    assert single.choose()[1] is None
