"""Decisions with references: thresholds of zero-shot scores do not apply to combined scores, in any path."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from vip2clip_hf import AnomalyDetectionPipeline, DecisionConfig, ReferenceBank, generate_image, predict_to_folder


PHOTOS = [generate_image("dots", None, 48, seed)[0] for seed in range(6)]
DEFECT = generate_image("dots", "blob", 48, 9)[0]


@pytest.fixture
def detector(model, image_processor):
    return AnomalyDetectionPipeline(model=model, image_processor=image_processor, task="anomaly-detection")


@pytest.fixture
def bank(model, image_processor):
    return ReferenceBank.from_images(model, image_processor, PHOTOS)


def calibrated(scores, **settings):
    found = {"method": "conformal", "num_images": len(scores), "settings": settings}
    return DecisionConfig(0.9, 0.8, calibration=found, image_scores=np.sort(scores))


def test_thresholds_of_zero_shot_are_not_used_with_references(detector, bank, caplog):
    """The threshold of the checkpoint, for another scale, decided about combined scores."""
    detector.model.decision = calibrated([0.2, 0.4], **detector.score_settings())
    assert (detector(DEFECT)["label"] == "anomalous") == (detector(DEFECT)["score"] > np.float32(0.9))
    with_references = detector(DEFECT, references=bank)
    assert (with_references["label"] == "anomalous") == (with_references["score"] > 0.5)
    assert "references" in caplog.text
    assert detector.model.decision.image_threshold == 0.9


def test_p_values_come_from_the_left_out_references(detector, bank):
    result = detector(DEFECT, references=bank)
    larger = sum(score >= np.float32(result["score"]) for score in bank.left_out_scores())
    assert result["p_value"] == pytest.approx((1 + larger) / 7)
    assert "p_value" not in detector(DEFECT)


def test_the_warning_is_true_for_other_references(detector, bank, caplog):
    """It said that p_value is None, next to a p-value."""
    detector.model.decision = calibrated([0.2, 0.4], **detector.score_settings())
    assert detector(DEFECT, references=bank)["p_value"] is not None
    assert "p_value is None" not in caplog.text
    assert "they are 0.5 for these references" in caplog.text


def test_one_reference_gives_no_p_value(detector, model, image_processor):
    one = ReferenceBank.from_images(model, image_processor, PHOTOS[:1])
    assert "p_value" not in detector(DEFECT, references=one)


def test_a_calibration_with_references_is_used_with_these_only(detector, bank, caplog):
    other = ReferenceBank.from_images(detector.model, detector.image_processor, PHOTOS[:3])
    settings = {**detector.score_settings(), "references": bank.checksum()}
    detector.model.decision = calibrated([0.2, 0.4], **settings)
    result = detector(DEFECT, references=bank)
    assert (result["label"] == "anomalous") == (result["score"] > np.float32(0.9))
    assert result["p_value"] is not None
    without = detector(DEFECT)
    assert (without["label"] == "anomalous") == (without["score"] > 0.5)
    assert without["p_value"] is None
    assert detector(DEFECT, references=other)["p_value"] in (0.25, 0.5, 0.75, 1.0)
    assert "references" in caplog.text


def test_thresholds_of_a_checkpoint_with_references_are_used(detector, bank):
    """Without a calibration: they were set by hand."""
    detector.model.references = bank
    detector.model.decision = DecisionConfig(0.0, 0.0)
    assert detector(PHOTOS[0])["label"] == "anomalous"


def test_all_paths_use_the_same_decision(detector, bank, tmp_path):
    (tmp_path / "photos").mkdir()
    DEFECT.save(tmp_path / "photos" / "a.png")
    detector.model.decision = calibrated([0.2, 0.4], **detector.score_settings())
    detector.model.references = bank
    expected = detector(tmp_path / "photos" / "a.png")
    found = predict_to_folder(detector.model, detector.image_processor, tmp_path / "photos", tmp_path / "out")
    row = pq.read_table(found["table"]).to_pylist()[0]
    assert row["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert row["label"] == expected["label"]
    assert row["p_value"] == pytest.approx(expected["p_value"])
