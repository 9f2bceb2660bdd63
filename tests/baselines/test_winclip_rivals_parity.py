"""WinCLIP: what anomalib's code computes, see tests/fixtures/rivals/winclip/README.md."""

import pytest
import torch

from helpers.rivals import assert_close, clip_tokenizer, load_oracle, load_tower, outputs_of
from vip2clip_hf.baselines import WinClipForAnomalyDetection
from vip2clip_hf.baselines.winclip_steps import association, class_scores, harmonic_aggregation, window_indices


# Its fixtures take seconds: one process computes them once.
pytestmark = pytest.mark.xdist_group("winclip")


EXPECTED, CONFIG, PROMPTS = load_oracle("winclip")
CLASSES, SCALES = CONFIG["classes"], CONFIG["scales"]
TOLERANCE = 5e-6
# Embeddings have values up to 7: their difference relative to the largest.
EMBEDDINGS = ("plain.", "text_embeddings", "zs.feature", "zs.image_emb", "zs.patch_emb", "zs.window_emb", "fs4.ref")


@pytest.fixture(scope="module")
def model() -> WinClipForAnomalyDetection:
    return WinClipForAnomalyDetection.from_clip(load_tower("winclip"), clip_tokenizer(EXPECTED["vocab_real_ids"]))


@pytest.fixture(scope="module")
@torch.no_grad()
def computed(model) -> dict[str, torch.Tensor]:
    """Everything in the fixture, computed by the model."""
    found, images, grid = {}, EXPECTED["images"].float(), model.config.patch_grid
    for scale in SCALES:
        for side in (6, 15):
            found[f"masks.scale{scale}.grid{side}"] = window_indices(side, scale).T
    found["unit.harmonic.out"] = harmonic_aggregation(EXPECTED["unit.harmonic.window_scores"], 3, 2)
    features = model.encode_images(images)
    found["zs.feature_map"] = model.embed_patches(images)
    found["zs.image_embeddings"] = found["plain.image_features"] = features.image_embeds
    found["zs.patch_embeddings"] = features.patch_embeds
    found["plain.text_features"] = model.encode_prompts(EXPECTED["tokens.candle.anomalous"][:8])
    for name in CLASSES:
        outputs = model(images, class_name=name)
        found[f"text_embeddings.{name}"] = outputs.text_embeds
        found[f"zs.score.{name}"], found[f"zs.map.{name}"] = outputs.scores, outputs.anomaly_maps
        found[f"zs.multi_scale.{name}"] = outputs.grid_maps
        for scale in SCALES:
            scores = class_scores(features.window_embeds[scale], outputs.text_embeds, CONFIG["temperature"])
            found[f"zs.window_embeddings.scale{scale}"] = features.window_embeds[scale]
            found[f"zs.window_scores.scale{scale}.{name}"] = scores
            found[f"zs.harmonic.scale{scale}.{name}"] = harmonic_aggregation(scores, grid, scale)
    for count in CONFIG["k_shots"]:
        good = model.encode_images(EXPECTED["references"][:count].float())
        found[f"fs{count}.reference_patch_embeddings"] = good.patch_embeds
        found[f"fs{count}.patch_scores"] = association(features.patch_embeds, good.patch_embeds)
        for scale in SCALES:
            scores = association(features.window_embeds[scale], good.window_embeds[scale])
            found[f"fs{count}.reference_window_embeddings.scale{scale}"] = good.window_embeds[scale]
            found[f"fs{count}.window_scores.scale{scale}"] = scores
            found[f"fs{count}.harmonic.scale{scale}"] = harmonic_aggregation(scores, grid, scale)
        outputs = model(images, class_name="candle", references=good)
        found[f"fs{count}.multi_scale"] = outputs.reference_grid_maps
        found[f"fs{count}.score.candle"], found[f"fs{count}.map.candle"] = outputs.scores, outputs.anomaly_maps
    return found


@pytest.mark.parametrize("name", outputs_of(EXPECTED, {"references", "unit.harmonic.window_scores"}))
def test_parity(computed, name):
    largest = max(1.0, EXPECTED[name].abs().max().item()) if name.startswith(EMBEDDINGS) else 1.0
    assert_close(computed[name], EXPECTED[name], TOLERANCE * largest)


@pytest.mark.parametrize("name", CLASSES)
def test_prompts(model, name):
    texts = model.config.prompts
    for kind in ("normal_states", "anomalous_states", "templates"):
        assert list(getattr(texts, kind)) == PROMPTS[kind]
    for kind, written in zip(("normal", "anomalous"), model.get_prompts(name)):
        expected = EXPECTED[f"tokens.{name}.{kind}"]
        assert len(written) == len(expected) == PROMPTS["counts"][name][kind]
        for text, row in zip(written, expected.tolist()):
            ids = model.tokenizer(text)["input_ids"]
            assert ids + [0] * (len(row) - len(ids)) == row, text


@torch.no_grad()
def test_encoding_of_recorded_tokens(model, computed):
    """The fixture pads with zeros, the model with end tokens."""
    ids = [EXPECTED[f"tokens.object.{kind}"] for kind in ("normal", "anomalous")]
    text = torch.stack([model.pool_prompts(model.encode_prompts(one)) for one in ids])
    assert_close(text, EXPECTED["text_embeddings.object"], 5 * TOLERANCE)
    outputs = model(EXPECTED["images"].float(), text_embeds=text)
    assert_close(outputs.scores, EXPECTED["zs.score.object"], TOLERANCE)
