"""AnomalyCLIP: configuration, prompts, features, training, precision and files."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, CLIPModel, set_seed

from helpers.rivals import clip_tokenizer, tiny_text_clip
from helpers.tiny import change_weights
from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.baselines import AnomalyClipConfig, AnomalyClipForAnomalyDetection, BaselineDetector
from vip2clip_hf.baselines.anomalyclip_vision import value_attention, value_path
from vip2clip_hf.baselines.methods import create_model
from vip2clip_hf.models.small_text_tower import VOCABULARY


SETTINGS = {
    "image_size": 32, "dpam_layers": 2, "prompt_depth": 2, "num_context_tokens": 3, "deep_prompt_length": 2,
    "smoothing_sigma": 1.0,
}  # fmt: skip


def create(clip: CLIPModel | None = None, **overrides) -> AnomalyClipForAnomalyDetection:
    set_seed(0)
    model = AnomalyClipForAnomalyDetection.from_clip(
        clip or tiny_text_clip(num_hidden_layers=3), clip_tokenizer(), **{**SETTINGS, **overrides}
    )
    # Larger vectors, to make differences visible.
    change_weights(model.prompt_learner)
    return model


@pytest.fixture(scope="module")
def model() -> AnomalyClipForAnomalyDetection:
    return create(feature_layers=(1, 3))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def masks_of(count: int) -> torch.Tensor:
    masks = torch.zeros(count, 32, 32)
    masks[1:, 4:20, 8:24] = 1
    return masks


# Configuration


def test_published_settings():
    config = AnomalyClipConfig()
    assert (config.image_size, config.patch_grid, config.feature_layers) == (518, 37, (24,))
    assert (config.dpam_layers, config.num_context_tokens, config.prompt_depth) == (19, 12, 9)
    assert (config.deep_prompt_length, config.temperature, config.smoothing_sigma) == (4, 0.07, 4.0)
    assert config.ids_of("normal") == (49406, 14115, 269, 49407)
    assert config.ids_of("anomalous") == (49406, 13568, 14115, 269, 49407)
    assert (config.position_interpolation, config.half_prompts) == ("bilinear", False)


def test_known_ids_are_those_of_the_tokenizer(model):
    words = AnomalyClipConfig(clip_config=model.config.clip_config, **SETTINGS)
    assert (words.normal_token_ids, words.anomalous_token_ids) == (
        model.config.normal_token_ids,
        model.config.anomalous_token_ids,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_depth": 3}, "prompt_depth is 3; expected an integer from 1 to 2, the number of text blocks"),
        ({"prompt_depth": 0}, "prompt_depth is 0; expected an integer from 1 to 2"),
        ({"dpam_layers": 4}, "dpam_layers is 4; expected an integer from 0 to 3, the number of vision blocks"),
        ({"feature_layers": (0, 3)}, r"feature_layers is \(0, 3\); expected block numbers from 1 to 3"),
        ({"feature_layers": ()}, r"feature_layers is \(\); expected block numbers"),
        ({"feature_layers": (4,)}, r"feature_layers is \(4,\); expected block numbers from 1 to 3"),
        ({"num_context_tokens": 0}, "num_context_tokens is 0; expected an integer of at least 1"),
        ({"num_context_tokens": 74}, "give a prompt of 78 tokens; expected at most 77"),
        ({"deep_prompt_length": 4}, "deep_prompt_length is 4; expected an integer from 1 to 3, the number of context"),
        ({"normal_text": " "}, "normal_text is ' '; expected a text that is not empty"),
        ({"normal_text": "object"}, "normal_token_ids is None for normal_text 'object'; expected at least one"),
        ({"anomalous_token_ids": (14115,)}, r"anomalous_token_ids is \(14115,\); expected \(13568, 14115, 269\)"),
        ({"normal_text": "nut", "normal_token_ids": (49408,)}, "expected at least one token id from 0 to 49407"),
        ({"eos_token_id": 49408}, "eos_token_id is 49408; expected a token id from 0 to 49407"),
        ({"temperature": 0}, "temperature is 0; expected a number of at least 0.0001"),
        ({"smoothing_sigma": -1}, "smoothing_sigma is -1; expected a number from 0 to 32"),
        ({"local_loss_weight": -1.0}, "local_loss_weight is -1.0; expected a finite number"),
        ({"image_size": 36}, "image_size is 36; expected a positive multiple of the backbone's patch size 8"),
        (
            {"normal_states": ("good {}",)},
            "normal_states is .*; expected None, because AnomalyCLIP learns its prompts",
        ),
        (
            {"prompt_ensemble": "winclip"},
            "prompt_ensemble is 'winclip'; expected 'single', because AnomalyCLIP learns",
        ),
    ],
)
def test_values_that_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        AnomalyClipConfig(clip_config=model.config.clip_config, **{**SETTINGS, **settings})


def test_defaults_that_a_small_backbone_does_not_have():
    with pytest.raises(ValueError, match="dpam_layers is 19; expected an integer from 0 to 3"):
        AnomalyClipForAnomalyDetection.from_clip(tiny_text_clip(num_hidden_layers=3), clip_tokenizer(), image_size=32)


# Files


@torch.no_grad()
def test_save_and_load(model, images, tmp_path):
    expected = model(images)
    model.save_pretrained(tmp_path)
    for path in tmp_path.glob("*token*"):
        path.unlink()  # the configuration has the ids
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is AnomalyClipForAnomalyDetection
    assert type(AutoConfig.from_pretrained(tmp_path)) is AnomalyClipConfig
    assert (loaded.tokenizer, loaded.training, loaded.config.feature_layers) == (None, False, (1, 3))
    found = loaded(images)
    for name in ("scores", "anomaly_maps", "layer_maps", "text_embeds"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)
    assert set(loaded.adapter_state_dict()) == {
        "prompt_learner.normal_context", "prompt_learner.anomalous_context", "prompt_learner.deep_prompts.0",
    }  # fmt: skip
    detector = BaselineDetector(loaded, ViP2ClipImageProcessor(size=32))
    torch.testing.assert_close(detector.for_category("nut").score(images)[0], expected.scores, atol=1e-5, rtol=0)


def test_words_that_are_overridden_when_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AnomalyClipForAnomalyDetection.from_pretrained(tmp_path, normal_text="good", smoothing_sigma=0)
    assert (loaded.config.normal_token_ids, loaded.config.anomalous_token_ids) == ((886,), (13568, 14115, 269))
    with pytest.raises(ValueError, match="normal_token_ids is None for normal_text 'nut'"):
        AnomalyClipForAnomalyDetection.from_pretrained(tmp_path, normal_text="nut")
    loaded = AnomalyClipForAnomalyDetection.from_pretrained(tmp_path, normal_text="nut", normal_token_ids=(5, 6))
    assert loaded.config.ids_of("normal") == (49406, 5, 6, 49407)


def test_new_weights():
    clip = tiny_text_clip()
    clip_settings = {**SETTINGS, "num_context_tokens": 60, "deep_prompt_length": 60}
    models = []
    for seed in (1, 1, 2):
        set_seed(seed)
        models.append(AnomalyClipForAnomalyDetection.from_clip(clip, clip_tokenizer(), **clip_settings))
    first, same, other = (model.adapter_state_dict() for model in models)
    for name, tensor in first.items():
        assert torch.equal(tensor, same[name]), name
        assert not torch.equal(tensor, other[name]), name
        assert abs(tensor.std().item() - 0.02) < 0.003
        assert abs(tensor.mean().item()) < 0.003


@torch.no_grad()
def test_the_bundled_backbone():
    """Its text tower knows the state words only, and has fewer blocks than CLIP's."""
    model = create_model("anomalyclip", "bundled", image_size=96)
    assert model.config.ids_of("normal") == (0, VOCABULARY["good"], 1)
    assert model.config.ids_of("anomalous") == (0, VOCABULARY["damaged"], 1)
    assert model.get_prompts() == ([f"{'X ' * 12}good"], [f"{'X ' * 12}damaged"])
    outputs = model(torch.randn(1, 3, 96, 96))
    assert outputs.anomaly_maps.shape == (1, 96, 96)
    assert F.cosine_similarity(*outputs.text_embeds, dim=0) < 0.9999
    with pytest.raises(ValueError, match=r"does not know the words of normal_text, 'object\.'; expected words"):
        AnomalyClipForAnomalyDetection.from_clip(model.clip, model.tokenizer, image_size=96)


# Prompts


@torch.no_grad()
def test_prompts_have_no_class_name(model, images):
    assert model.get_prompts("nut") == (["X X X object."], ["X X X damaged object."])
    assert not model.uses_class_names
    expected = model(images)
    for name in ("nut", ["nut", "carpet", "screw"]):
        assert torch.equal(model(images, class_name=name).scores, expected.scores)
    assert torch.equal(model.get_text_embeds("nut"), model.get_text_embeds())
    given = model(images, text_embeds=model.get_text_embeds(), class_name="nut")
    torch.testing.assert_close(given.anomaly_maps, expected.anomaly_maps)


@torch.no_grad()
def test_states_that_deep_prompts_replace(model):
    """Before the second text block, after the start token, and only there."""
    inputs, outputs, layers = [], [], model.clip.text_model.encoder.layers
    hooks = [one.register_forward_pre_hook(lambda module, args: inputs.append(args[0])) for one in layers]
    hooks += [one.register_forward_hook(lambda module, args, output: outputs.append(output)) for one in layers]
    model.get_text_embeds()
    for hook in hooks:
        hook.remove()
    count = model.config.deep_prompt_length
    for prompt in range(2):
        assert torch.equal(inputs[1][prompt, 1 : 1 + count], model.prompt_learner.deep_prompts[0])
    for part in (slice(0, 1), slice(1 + count, None)):
        assert torch.equal(inputs[1][:, part], outputs[0][:, part])
    assert not torch.allclose(inputs[1], outputs[0])


@torch.no_grad()
def test_a_depth_of_one_has_no_deep_prompts(images, tmp_path):
    model = create(prompt_depth=1)
    assert len(model.prompt_learner.deep_prompts) == 0
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images).scores, model(images).scores, atol=1e-5, rtol=0)


@torch.no_grad()
def test_deep_prompts_in_half_precision():
    clip = tiny_text_clip(num_hidden_layers=3)
    exact, rounded = create(clip), create(clip, half_prompts=True)
    difference = (exact.get_text_embeds() - rounded.get_text_embeds()).abs().max()
    assert 1e-6 < difference < 1e-2
    exact.prompt_learner.deep_prompts[0].copy_(exact.prompt_learner.deep_prompts[0].half())
    torch.testing.assert_close(exact.get_text_embeds(), rounded.get_text_embeds())


# Images


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_value_attention(implementation):
    model = create(attn_implementation=implementation)
    block = model.clip.vision_model.encoder.layers[1]
    hidden = torch.randn(2, 17, 32)
    values = block.self_attn.v_proj(block.layer_norm1(hidden)).view(2, 17, 2, 16)
    weights = (torch.einsum("bthd,bshd->bhts", values, values) / 4).softmax(dim=-1)
    expected = block.self_attn.out_proj(torch.einsum("bhts,bshd->bthd", weights, values).reshape(2, 17, 32))
    torch.testing.assert_close(value_attention(block, hidden), expected)


@torch.no_grad()
def test_value_path(model, images):
    states, layers = model.encode_layers(images), model.clip.vision_model.encoder.layers
    path = value_path(model.clip, states, 2, 3)
    assert path[0] is states[1]
    torch.testing.assert_close(path[1], states[1] + value_attention(layers[1], states[1]))
    torch.testing.assert_close(path[2], path[1] + value_attention(layers[2], states[2]))
    assert [len(value_path(model.clip, states, dpam, last)) for dpam in range(4) for last in (1, 3)] == [1, 3] * 4
    for found, expected in zip(value_path(model.clip, states, 0, 3), states[1:]):
        assert found is expected


@torch.no_grad()
def test_cached_features_and_shared_states(model, images):
    expected = model(images)
    features = model.get_image_features(images)
    assert features.patch_embeds.shape[1:] == model.feature_shape == (2, 16, 16)
    assert features.image_embeds.shape == (3, model.image_feature_size)
    cached = {"image_embeds": features.image_embeds, "patch_embeds": features.patch_embeds}
    for inputs in (cached, {"hidden_states": model.encode_layers(images)}):
        found = model(**inputs)
        for name in ("scores", "anomaly_maps", "logits", "layer_maps"):
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=0)
    half = model(**{name: tensor.half() for name, tensor in cached.items()})
    assert half.anomaly_maps.dtype == torch.float32
    torch.testing.assert_close(half.anomaly_maps, expected.anomaly_maps, atol=5e-3, rtol=0)


@torch.no_grad()
def test_layers_are_added(images):
    clip = tiny_text_clip(num_hidden_layers=3)
    first, last = create(clip, feature_layers=(1,)), create(clip)
    maps = first(images).anomaly_maps + last(images).anomaly_maps
    torch.testing.assert_close(create(clip, feature_layers=[3, 1])(images).anomaly_maps, maps)
    repeated = create(clip, feature_layers=(3, 3, 3, 3))
    torch.testing.assert_close(repeated(images).anomaly_maps, 4 * last(images).anomaly_maps)
    assert repeated.feature_shape == (4, 16, 16)
    assert torch.equal(repeated(images).scores, last(images).scores)


@torch.no_grad()
def test_the_class_token_has_no_layer_norm(model, images):
    states = model.encode_layers(images)
    expected = F.normalize(states[-1][:, 0] @ model.clip.visual_projection.weight.T, dim=-1)
    torch.testing.assert_close(model(images).image_embeds, expected)


# Training


def test_gradients_and_loss(model, images):
    labels, masks = torch.tensor([0, 1, 1]), masks_of(3)
    outputs = model(images, labels=labels, mask_labels=masks)
    assert outputs.anomaly_maps is None
    parts = outputs.loss_components
    assert set(parts) == set(model.loss_weights) == {"image", "focal", "dice_anomalous", "dice_normal"}
    expected = parts["image"] + 4 * (parts["focal"] + parts["dice_anomalous"] + parts["dice_normal"])
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.loss, sum(model.loss_weights[name] * part for name, part in parts.items()))
    model.zero_grad()
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == name.startswith("prompt_learner."), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name
    (group,) = model.optimizer_groups(1e-3)
    assert group["lr"] == 1e-3
    assert {id(one) for one in group["params"]} == {id(one) for one in model.prompt_learner.parameters()}


def test_images_without_mask(model, images):
    labels, masks = torch.tensor([0, 1, 1]), masks_of(3)
    masks[2] = float("nan")
    valid = torch.tensor([True, True, False])
    parts = model(images, labels=labels, mask_labels=masks, mask_valid=valid).loss_components
    some = model(images[:2], labels=labels[:2], mask_labels=masks[:2]).loss_components
    for name in ("focal", "dice_anomalous", "dice_normal"):
        torch.testing.assert_close(parts[name], some[name])
    torch.testing.assert_close(parts["image"], model(images, labels=labels).loss)
    assert not torch.allclose(parts["image"], some["image"])
    none = model(images, mask_labels=masks, mask_valid=torch.zeros(3, dtype=torch.bool))
    assert none.loss == 0
    assert none.scores.shape == (3,)


def test_training_reduces_the_loss(images):
    model = create()
    features = model.get_image_features(images)
    optimizer = model.optimizer_class(model.optimizer_groups(0.01))
    losses = []
    for _ in range(15):
        loss = model(**features, labels=torch.tensor([0, 1, 1]), mask_labels=masks_of(3)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# Precision


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, images, dtype, tmp_path):
    expected = model(images)
    model.save_pretrained(tmp_path)
    loaded = AnomalyClipForAnomalyDetection.from_pretrained(tmp_path, dtype=dtype)
    converted = create(feature_layers=(1, 3))
    converted.load_state_dict(model.state_dict())
    for half in (loaded, converted.to(dtype)):
        assert half.clip.visual_projection.weight.dtype == dtype
        assert {one.dtype for one in half.prompt_learner.parameters()} == {torch.float32}
        outputs = half(images.to(dtype))
        assert outputs.scores.dtype == outputs.anomaly_maps.dtype == torch.float32
        torch.testing.assert_close(outputs.scores, expected.scores, atol=0.05, rtol=0)
        torch.testing.assert_close(outputs.anomaly_maps, expected.anomaly_maps, atol=0.15, rtol=0)


def test_training_with_autocast(model, images):
    expected = model(images, labels=torch.tensor([0, 1, 1]), mask_labels=masks_of(3)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images, labels=torch.tensor([0, 1, 1]), mask_labels=masks_of(3))
    assert outputs.loss.dtype == outputs.layer_maps.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected, atol=0.5, rtol=0)
    outputs.loss.backward()


@torch.no_grad()
def test_double_precision(images):
    model = create(feature_layers=(1, 3))
    expected = model(images)
    found = model.double()(images.double())
    assert found.anomaly_maps.dtype == torch.float64
    torch.testing.assert_close(found.anomaly_maps.float(), expected.anomaly_maps, atol=1e-4, rtol=0)


# Errors


def test_calls_that_are_refused(model, images):
    features = model.get_image_features(images)
    for inputs, message in (
        ({}, "found none of them"),
        ({"pixel_values": images, **features}, "found several of them"),
        ({"image_embeds": features.image_embeds}, r"have the shapes \(batch_size, ...\) \(16,\) and None"),
        ({**features, "patch_embeds": features.patch_embeds[:, :1]}, r"\(1, 16, 16\); expected \(16,\) and \(2, 16"),
        ({"pixel_values": images[..., :24]}, r"pixel_values has shape .*; expected \(batch_size, 3, 32, 32\)"),
        ({"pixel_values": images, "text_embeds": torch.randn(3, 16)}, r"text_embeds has shape \(3, 16\); expected"),
        ({"pixel_values": images, "mask_labels": torch.zeros(3, 4, 4)}, r"masks has shape \(3, 4, 4\); expected \(3,"),
        ({"hidden_states": model.encode_layers(images)[:2]}, "hidden_states has 2 states"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
