"""Checkpoints saved before names changed, see fixtures/checkpoints_0_1. They load with the same results."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny import FIXTURES
from vip2clip_hf import AnomalyDetectionPipeline, Provenance, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.models.vip2clip.configuration_tables_vip2clip import MOVED_FIELDS


FOLDER = FIXTURES / "checkpoints_0_1"


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "expected.safetensors")


def check_outputs(model, expected, variant):
    with torch.inference_mode():
        output = model(pixel_values=expected[f"{variant}.pixel_values"])
    for name in ("scores", "logits", "layer_maps", "anomaly_maps", "text_embeds", "image_embeds"):
        # Logits are divided by the temperature, here 0.02.
        tolerance = 1e-3 if name == "logits" else 1e-5
        torch.testing.assert_close(output[name], expected[f"{variant}.{name}"], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_complete_checkpoint(expected, variant, tmp_path):
    model = ViP2ClipForAnomalyDetection.from_pretrained(FOLDER / variant)
    assert model.config.num_object_tokens == 3
    assert model.config.fgp_num_heads == {"paper": 1, "release": 8}[variant]
    assert model.config.fgp_scaled == (variant == "paper")
    check_outputs(model, expected, variant)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not {"num_image_tokens", "perception_num_heads", "perception_scaled"} & set(saved)
    names = load_file(tmp_path / "model.safetensors")
    assert "prompt_learner.object_tokens" in names
    assert "prompt_learner.image_tokens" not in names
    check_outputs(ViP2ClipForAnomalyDetection.from_pretrained(tmp_path), expected, variant)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_adapters_only_checkpoint(expected, variant):
    clip = ViP2ClipForAnomalyDetection.from_pretrained(FOLDER / variant).clip
    model = ViP2ClipForAnomalyDetection.from_pretrained(FOLDER / f"{variant}_adapters", backbone=clip)
    check_outputs(model, expected, variant)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_provenance(variant, tmp_path):
    """Training datasets and backbone were fields of `config.json`."""
    config = json.loads((FOLDER / variant / "config.json").read_text())
    config.update(backbone_id="org/clip", backbone_revision="a" * 40, training_sets=[{"name": "mine"}])
    shutil.copytree(FOLDER / variant, tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    model = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "old")
    assert model.provenance == Provenance("org/clip", "a" * 40, [{"name": "mine"}])
    model.save_pretrained(tmp_path / "new")
    assert not set(MOVED_FIELDS) & set(json.loads((tmp_path / "new" / "config.json").read_text()))
    assert ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "new").provenance == model.provenance


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_decisions(expected, variant):
    """Score, decision, p-value, map and mask of photos. The paper variant is calibrated with tiles and a top-k."""
    detector = AnomalyDetectionPipeline.from_pretrained(FOLDER / variant, device="cpu")
    assert detector.score_settings()["top_k"] == {"paper": 4, "release": detector.model.config.top_k}[variant]
    assert detector.image_processor.mask_threshold == 3
    for number in range(4):
        name = f"{variant}.photo{number}"
        result = detector(expected[name].numpy())
        score, p_value, anomalous = expected[f"{name}.score"].tolist()
        assert result["score"] == pytest.approx(score, abs=1e-5)
        assert result.get("p_value", float("nan")) == pytest.approx(p_value, nan_ok=True)
        assert (result["label"] == "anomalous") == bool(anomalous)
        found = torch.from_numpy(result["anomaly_map"])
        torch.testing.assert_close(found, expected[f"{name}.anomaly_map"], rtol=0, atol=1e-5)
        assert torch.equal(torch.from_numpy(result["mask"]), expected[f"{name}.mask"])


def test_image_processor(tmp_path):
    shutil.copy(FOLDER / "paper" / "preprocessor_config.json", tmp_path)
    assert ViP2ClipImageProcessor.from_pretrained(tmp_path).size == {"height": 48, "width": 48}
