"""CLIP: what open_clip's towers and the definition in tests/fixtures/rivals/clip/README.md compute."""

import pytest
import torch

from helpers.rivals import assert_close, clip_tokenizer, load_oracle, load_tower, outputs_of
from vip2clip_hf.baselines import ClipForAnomalyDetection


# Its fixtures take seconds: one process computes them once.
pytestmark = pytest.mark.xdist_group("clip")


EXPECTED, CONFIG, PROMPTS = load_oracle("clip")
ENSEMBLES = {"single": "single", "imagenet80": "imagenet", "state_template": "april_gan"}
CLASSES = {name.replace(" ", "_"): name for name in CONFIG["classes"]}
CASES = [(key, ensemble) for key in CLASSES for ensemble in ENSEMBLES]
TOLERANCE, LOGITS = 5e-5, 2e-4


@pytest.fixture(scope="module")
def model() -> ClipForAnomalyDetection:
    return ClipForAnomalyDetection.from_clip(load_tower("clip"), clip_tokenizer(EXPECTED["vocab_real_ids"]))


@pytest.fixture(scope="module")
def computed(model) -> dict[str, torch.Tensor]:
    """Everything in the fixture, computed by the model."""
    found, images, config = {}, EXPECTED["images"].float(), model.config
    with torch.no_grad():
        found["image_features_raw"], found["patch_features_projected"] = model.get_image_features(images)
        hidden = model.encode_layers(images)[-1][:, 1:]
        found["patch_tokens_after_ln_post"] = model.clip.vision_model.post_layernorm(hidden)
        found["plain.text_features"] = model.encode_prompts(EXPECTED["tokens.candle.imagenet80.anomalous"][:8])
        for key, ensemble in CASES:
            name = f"{key}.{ensemble}"
            config.prompt_ensemble = ENSEMBLES[ensemble]
            for prefix, order, sigma, scale in (
                ("map.softmax_then_up.gauss4", "probabilities", 4.0, 100.0),
                ("map.softmax_then_up", "probabilities", 0, 100.0),
                ("map.logits_up_corners_then_softmax", "logits", 0, 100.0),
                ("score_logit_scale", "probabilities", 4.0, None),
            ):
                config.map_order, config.smoothing_sigma, config.logit_scale = order, sigma, scale
                outputs = model(images, class_name=CLASSES[key])
                found[f"{prefix}.{name}"] = outputs.scores if scale is None else outputs.anomaly_maps
                if scale is not None:
                    found[f"score.{name}"], found[f"logits_lowres.{name}"] = outputs.scores, outputs.patch_logits
                    found[f"prob_lowres.{name}"] = outputs.patch_logits.softmax(dim=1)[:, 1]
                    found[f"text_features.{name}"] = outputs.text_embeds.T
        config.prompt_ensemble, config.map_order, config.smoothing_sigma = "single", "probabilities", 4.0
        config.logit_scale = 100.0
    return found


@pytest.mark.parametrize("name", outputs_of(EXPECTED))
def test_parity(computed, name):
    assert_close(computed[name], EXPECTED[name], LOGITS if name.startswith("logits") else TOLERANCE)


@pytest.mark.parametrize(("key", "ensemble"), CASES)
def test_prompts(model, monkeypatch, key, ensemble):
    """Texts and order of the prompts: the tokens of open_clip's tokenizer."""
    monkeypatch.setattr(model.config, "prompt_ensemble", ENSEMBLES[ensemble])
    for kind, texts in zip(("normal", "anomalous"), model.get_prompts(CLASSES[key])):
        expected = EXPECTED[f"tokens.{key}.{ensemble}.{kind}"]
        assert len(texts) == len(expected) == PROMPTS["counts"][CLASSES[key]][ensemble][kind]
        for text, row in zip(texts, expected.tolist()):
            ids = model.tokenizer(text)["input_ids"]
            assert ids + [0] * (len(row) - len(ids)) == row, text


@torch.no_grad()
def test_encoding_of_recorded_tokens(model):
    """The fixture pads with zeros, the model with end tokens."""
    ids = [EXPECTED[f"tokens.candle.single.{kind}"] for kind in ("normal", "anomalous")]
    text = torch.stack([model.pool_prompts(model.encode_prompts(one)) for one in ids])
    assert_close(text.T, EXPECTED["text_features.candle.single"], TOLERANCE)


def test_texts_of_prompts(model, monkeypatch):
    normal, anomalous = model.get_prompts("nut")
    assert normal == [PROMPTS["single"]["normal"].format("nut")]
    assert anomalous == [PROMPTS["single"]["anomalous"].format("nut")]
    monkeypatch.setattr(model.config, "prompt_ensemble", "imagenet")
    assert list(model.config.prompts.templates) == PROMPTS["imagenet80_templates"]
