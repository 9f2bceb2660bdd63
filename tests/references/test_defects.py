"""Weight and threshold from photos of defects, measured by cross-validation."""

import numpy as np
import pytest

from helpers.good_photos import bad_photo, write_photos, write_tiny_checkpoint
from vip2clip_hf import AnomalyDetectionPipeline, ReferenceBank, adapt
from vip2clip_hf.references.defects import _choose, _cross_validate, choose_with_defects
from vip2clip_hf.references.photos import list_photos
from vip2clip_hf.references.scoring import rebuilt, with_references


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
    with pytest.raises(ValueError, match="None of the 1 photos of defects can be read"):
        adapt(checkpoint, good, defects=tmp_path / "broken", device="cpu")
