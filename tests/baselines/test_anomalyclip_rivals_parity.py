"""AnomalyCLIP: what the published code computes, see tests/fixtures/rivals/anomalyclip/README.md."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import CLIPModel

from helpers.rivals import ORACLES, assert_close, clip_tokenizer
from vip2clip_hf.baselines import AnomalyClipForAnomalyDetection, convert_anomalyclip_checkpoint
from vip2clip_hf.baselines.anomalyclip_prompts import embed_prompts
from vip2clip_hf.baselines.anomalyclip_vision import project_tokens, value_path
from vip2clip_hf.models.vip2clip.maps_vip2clip import resize_maps


# Its fixtures take seconds: one process computes them once.
pytestmark = pytest.mark.xdist_group("anomalyclip")


FOLDER = ORACLES / "anomalyclip"
CONFIG = json.loads((FOLDER / "config.json").read_text())
INPUTS, EXPECTED, VARIANTS, TRAINING = (
    load_file(FOLDER / f"{name}.safetensors") for name in ("inputs", "expected", "variants", "training")
)
TOLERANCE = 2e-5
LAYERS, NATIVE = tuple(CONFIG["features_list"]), CONFIG["native_image_size"]
LAST = CONFIG["vision_layers"]
# Names of our parameters in the published code.
NAMES = {
    "ctx_pos": "normal_context",
    "ctx_neg": "anomalous_context",
    **{f"compound_prompts_text.{number}": f"deep_prompts.{number}" for number in range(CONFIG["depth"] - 1)},
}


def convert(**overrides) -> AnomalyClipForAnomalyDetection:
    settings = {
        "image_size": CONFIG["image_size"],
        "feature_layers": LAYERS,
        "dpam_layers": CONFIG["DPAM_layer"] - 1,
        "temperature": CONFIG["temperature"],
        "smoothing_sigma": CONFIG["sigma"],
        "local_loss_weight": CONFIG["lam"],
    }
    return convert_anomalyclip_checkpoint(
        FOLDER / "prompt_learner.pth",
        CLIPModel.from_pretrained(FOLDER / "clip_hf"),
        clip_tokenizer(INPUTS["vocab_ids"]),
        **{**settings, **overrides},
    )


@pytest.fixture(scope="module")
def model() -> AnomalyClipForAnomalyDetection:
    return convert()


def raw_maps(outputs, size: int) -> torch.Tensor:
    return resize_maps(outputs.layer_maps[:, :, 1].sum(dim=1), size)


def padded_ids(model: AnomalyClipForAnomalyDetection, tokenizer) -> torch.Tensor:
    length = CONFIG["context_length"]
    rows = [tokenizer(text)["input_ids"] for texts in model.get_prompts() for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@pytest.fixture(scope="module")
@torch.no_grad()
def computed(model) -> dict[str, torch.Tensor]:
    """Everything in expected.safetensors, computed by the model."""
    images, clip = INPUTS["pixel_values"], model.clip
    blocks: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
        for block in clip.text_model.encoder.layers
    ]
    raw = model.get_text_embeds()
    for hook in hooks:
        hook.remove()
    states = model.encode_layers(images)
    path = value_path(clip, states, model.config.dpam_layers, LAST)
    tokens = project_tokens(clip, path, LAYERS)
    outputs = model(images)
    size = CONFIG["image_size"]
    # The class token in the value path is in the fixture, but in no result.
    probabilities = (F.normalize(tokens, dim=-1) @ outputs.text_embeds.T / CONFIG["temperature"]).softmax(dim=-1)
    torch.testing.assert_close(outputs.layer_maps.flatten(3).mT, probabilities[:, :, 1:])
    return {
        "image_scores": outputs.scores,
        "maps_raw": raw_maps(outputs, size),
        "maps_smooth": outputs.anomaly_maps,
        "layer_maps": resize_maps(outputs.layer_maps[:, :, 1], size),
        "patch_probs": probabilities,
        "patch_features": tokens,
        "image_features_raw": model.get_image_features(images).image_embeds,
        "text_features": outputs.text_embeds,
        "text_features_raw": raw,
        "prompts": embed_prompts(clip, model.prompt_learner()[:2], model.config),
        "text_layers": torch.stack(blocks),
        "vision_ln_pre": states[0],
        "vision_x": torch.stack(path, dim=1),
        "vision_x_ori": torch.stack(states[1:], dim=1),
        "pos_embed_after": clip.vision_model.embeddings.interpolate_pos_encoding(images, size, size)[0],
        "tokenized_prompts_compact": padded_ids(model, model.tokenizer),
        "tokenized_prompts": padded_ids(model, clip_tokenizer()),
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_parity(computed, name):
    found, expected = computed[name], EXPECTED[name]
    if name in ("prompts", "text_layers"):
        # After the end token, which no result depends on, the fixture has other tokens.
        ends = EXPECTED["tokenized_prompts_compact"].argmax(dim=-1)
        axis = 0 if name == "prompts" else 1
        for prompt, end in enumerate(ends.tolist()):
            one, two = (tensor.select(axis, prompt)[..., : end + 1, :] for tensor in (found, expected))
            assert_close(one, two, TOLERANCE)
        assert found.shape[-2] == ends.max() + 1
    elif expected.is_floating_point():
        assert_close(found, expected, TOLERANCE)
    else:
        assert torch.equal(found, expected)


def test_prompts_of_the_configuration(model):
    """The ids that the model uses are those of the fixture."""
    for kind, row in zip(("normal", "anomalous"), EXPECTED["tokenized_prompts_compact"]):
        start, *others = model.config.ids_of(kind)
        ids = row[: row.argmax() + 1].tolist()
        assert ids[0] == start
        assert ids[1 + CONFIG["n_ctx"] :] == others


# Other settings

SETTINGS = {
    "last_layer_only": {"feature_layers": (LAST,)},
    "dpam5": {"dpam_layers": 4},
    "native56": {"image_size": NATIVE},
    # The published code had copies of the last block in place of all layers.
    "before_clone_fix": {"feature_layers": (LAST,) * len(LAYERS)},
}


@pytest.fixture(scope="module")
@torch.no_grad()
def variants() -> dict[str, torch.Tensor]:
    found = {}
    for name, settings in SETTINGS.items():
        model = convert(**settings)
        size = model.config.image_size
        images = INPUTS["pixel_values"][:, :, :size, :size]
        outputs, states = model(images), model.encode_layers(images)
        found[f"{name}.image_scores"], found[f"{name}.maps_smooth"] = outputs.scores, outputs.anomaly_maps
        found[f"{name}.maps_raw"] = raw_maps(outputs, size)
        path = value_path(model.clip, states, model.config.dpam_layers, LAST)
        found[f"{name}.patch_features"] = project_tokens(model.clip, path, model.config.feature_layers)
    clip, images = CLIPModel.from_pretrained(FOLDER / "clip_hf"), INPUTS["pixel_values"][:, :, :NATIVE, :NATIVE]
    found["plain.image_features_native56"] = clip.get_image_features(pixel_values=images).pooler_output
    found["plain.text_features"] = clip.get_text_features(input_ids=INPUTS["text_compact_ids"]).pooler_output
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(variants, name):
    assert_close(variants[name], VARIANTS[name], TOLERANCE)


# Training

RUNS = {
    "as_is": {"half_prompts": True},
    "fp32": {},
    "fp32_last_layer_only": {"feature_layers": (LAST,)},
}


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    found = {}
    masks, labels = INPUTS["masks"][:, 0], INPUTS["labels"]
    for run, settings in RUNS.items():
        model = convert(**settings)
        outputs = model(INPUTS["pixel_values"], labels=labels, mask_labels=masks)
        parts = [
            model.compute_loss(outputs.logits, layer[:, None], None, masks)[1]
            for layer in outputs.layer_maps.unbind(1)
        ]
        optimizer = torch.optim.Adam(model.optimizer_groups(1e-3), lr=1e-3, betas=(0.5, 0.999))
        outputs.loss.backward()
        components, weights = outputs.loss_components, model.loss_weights
        found[f"{run}.focal_per_layer"] = torch.stack([part["focal"] for part in parts])
        found[f"{run}.dice_per_layer"] = torch.stack(
            [torch.stack([part["dice_anomalous"], part["dice_normal"]]) for part in parts]
        )
        found[f"{run}.image_loss"], found[f"{run}.total_loss"] = components["image"], outputs.loss
        found[f"{run}.pixel_loss"] = sum(weights[name] * components[name] for name in components if name != "image")
        parameters = {key: model.prompt_learner.get_parameter(name) for key, name in NAMES.items()}
        for key, parameter in parameters.items():
            found[f"{run}.grad.{key}"] = parameter.grad.clone()
            found[f"{run}.grad_norm.{key}"] = parameter.grad.norm()
        optimizer.step()
        for key, parameter in parameters.items():
            found[f"{run}.after_step.{key}"] = parameter
    return {name: tensor.detach() for name, tensor in found.items()}


@pytest.mark.parametrize("name", TRAINING)
def test_training(trained, name):
    found, expected = trained[name], TRAINING[name]
    found = found.expand(expected.shape) if "ctx_" in name else found  # (1, 1, n, width)
    # Losses and gradients are up to 30: their difference relative to the largest value.
    largest = max(1.0, expected.abs().max().item())
    if name.startswith("as_is.grad.compound"):
        # These are rounded to float16. Where float32 is near the middle of two steps, the step can be the other one.
        same = (found - expected).abs() < TOLERANCE * largest
        assert same.float().mean() > 0.9
        assert_close(found, expected, 2**-10 * largest)
    else:
        assert_close(found, expected, TOLERANCE * largest)


def test_every_parameter_is_in_the_fixture():
    names = {name.partition("grad.")[2] for name in TRAINING if name.startswith("fp32.grad.")}
    assert names == set(NAMES)
    assert {name for name, one in convert().named_parameters() if one.requires_grad} == {
        f"prompt_learner.{name}" for name in NAMES.values()
    }
    stored = torch.load(FOLDER / "prompt_learner.pth", weights_only=True)["prompt_learner"]
    assert set(CONFIG["parameters_without_gradient"]) == {name for name in stored if "projections" in name}
