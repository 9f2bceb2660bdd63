import copy
import weakref

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, CLIPModel
from transformers.models.clip.modeling_clip import CLIPAttention

from helpers.tiny import TINY, assert_same_weights, change_weights, put_in_hub_cache, tiny_clip_config, tiny_config
from vip2clip_hf import ViP2ClipAnomalyDetectionOutput, ViP2ClipConfig, ViP2ClipForAnomalyDetection
from vip2clip_hf.models.vip2clip.loss_vip2clip import vip2clip_loss
from vip2clip_hf.models.vip2clip.maps_vip2clip import resize_maps


def adapters(model):
    return {name: p for name, p in model.named_parameters() if not name.startswith("clip.")}


# Shapes and values


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_output(variant, batch):
    model = ViP2ClipForAnomalyDetection(tiny_config(variant)).eval()
    output = model(**batch, output_attentions=True)
    heads = model.config.fgp_num_heads
    assert isinstance(output, ViP2ClipAnomalyDetectionOutput)
    assert output.loss.shape == ()
    assert set(output.loss_components) == {"image", "focal", "dice_anomalous", "dice_normal"}
    torch.testing.assert_close(output.loss, sum(output.loss_components.values()))
    assert output.logits.shape == (3, 2)
    assert output.scores.shape == (3,)
    assert output.anomaly_maps.shape == (3, 48, 48)
    assert output.layer_maps.shape == (3, 3, 2, 6, 6)
    assert output.text_embeds.shape == (3, 3, 2, 16)
    assert output.image_embeds.shape == (3, 16)
    assert len(output.cross_attentions) == 3
    assert all(a.shape == (3, heads, 2, 36) for a in output.cross_attentions)
    for attention in output.cross_attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, heads, 2))
    for tensor in (output.scores, output.anomaly_maps, output.layer_maps):
        assert tensor.min() >= 0
        assert tensor.max() <= 1
    torch.testing.assert_close(output.logits.softmax(-1)[:, 1], output.scores)
    torch.testing.assert_close(output.layer_maps.sum(2), torch.ones(3, 3, 6, 6))
    for embeds in (output.text_embeds, output.image_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(embeds.shape[:-1]))


def test_optional_outputs_and_tuple(model, pixel_values):
    with torch.no_grad():
        output = model(pixel_values)
        assert output.loss is None
        assert output.loss_components is None
        assert output.cross_attentions is None
        as_tuple = model(pixel_values, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[1], output.scores)


def test_paper_score_is_the_layer_mean_of_probabilities(model, pixel_values):
    with torch.no_grad():
        images = model.get_image_features(pixel_values)
        image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
        aligned = model.align(model.get_prompt_features(image_embeds).text_embeds, patch_embeds)
    expected = aligned.layer_logits.softmax(-1).mean(1)
    torch.testing.assert_close(aligned.logits, expected.log(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(aligned.scores, expected[:, 1])


def test_prompts_are_encoded_like_in_clip(model, clip):
    """encode_prompts of plain token ids compared with CLIPModel and prompts padded to 77 tokens."""
    ids = torch.tensor([[49406, 11, 22, 886, 33, 49407], [49406, 44, 55, 13568, 66, 49407]])
    padded = torch.cat([ids, torch.full((2, 71), 49407)], dim=1)
    model.config.clip_config.text_config.eos_token_id = 49407
    with torch.no_grad():
        expected = model.clip.get_text_features(padded).pooler_output
        model.config.num_context_tokens, model.config.num_object_tokens = 2, 1
        prompts = model.clip.text_model.embeddings.token_embedding(ids)[None]
        actual = model.clip.text_projection(model.encode_prompts(prompts).pooler_output)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_words_of_several_tokens_and_different_lengths(pixel_values):
    """The shorter prompt is padded after its end token. Padding must not change its embedding."""
    config = tiny_config(normal_word=None, normal_token_ids=(5,), anomalous_word=None, anomalous_token_ids=(7, 8, 9))
    model = ViP2ClipForAnomalyDetection(config).eval()
    assert config.prompt_lengths == (13, 15)
    with torch.no_grad():
        image_embeds = model.get_image_features(pixel_values).image_embeds
        assert model.get_prompts(image_embeds).shape == (3, 2, 15, 16)
        uneven = model.get_prompt_features(image_embeds).text_embeds
        model.config.anomalous_token_ids = (7,)
        even = model.get_prompt_features(image_embeds).text_embeds
    torch.testing.assert_close(uneven[:, 0], even[:, 0], rtol=1e-5, atol=1e-6)
    assert (uneven[:, 1] - even[:, 1]).abs().max() > 1e-3


def test_prompts_of_both_classes_only_share_object_tokens(model, pixel_values):
    with torch.no_grad():
        prompts = model.get_prompts(model.get_image_features(pixel_values).image_embeds)
    table = model.clip.text_model.embeddings.token_embedding.weight
    torch.testing.assert_close(prompts[:, :, 0], table[49406].expand(3, 2, -1))
    torch.testing.assert_close(prompts[:, 0, 8], table[886].expand(3, -1))
    torch.testing.assert_close(prompts[:, 1, 8], table[13568].expand(3, -1))
    torch.testing.assert_close(prompts[:, 0, 9:12], prompts[:, 1, 9:12])
    torch.testing.assert_close(prompts[:, :, 12], table[49407].expand(3, 2, -1))
    assert (prompts[0, 0, 9] - prompts[1, 0, 9]).abs().max() > 0  # depends on the image


@pytest.mark.parametrize("scaled", [True, False])
def test_perception_equals_the_textbook_form(pixel_values, scaled):
    """The folded projections compared with attention that projects every patch to keys and values."""
    model = ViP2ClipForAnomalyDetection(tiny_config("release", fgp_scaled=scaled)).eval()
    change_weights(model)
    perception = model.fine_grained_perception
    with torch.no_grad():
        images = model.get_image_features(pixel_values)
        image_embeds, patches = images.image_embeds, images.patch_embeds
        prompts = model.get_prompt_features(image_embeds).text_embeds
        actual, attention = perception(prompts, patches)
        query = perception.q_proj(prompts).view(3, 1, 2, 8, 2).transpose(2, 3)
        key = perception.k_proj(patches).view(3, 3, 36, 8, 2).transpose(2, 3)
        value = perception.v_proj(patches).view(3, 3, 36, 8, 2).transpose(2, 3)
        weights = (query @ key.mT / (2**0.5 if scaled else 1)).softmax(-1)
        expected = perception.out_proj((weights @ value).transpose(2, 3).flatten(-2))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention, weights, rtol=1e-5, atol=1e-6)


def test_top_k_in_call_and_configuration(model, pixel_values):
    with torch.no_grad():
        default, all_patches = model(pixel_values), model(pixel_values, top_k=36)
        model.config.top_k = 36
        torch.testing.assert_close(model(pixel_values).scores, all_patches.scores)
    assert (default.scores - all_patches.scores).abs().max() > 0
    torch.testing.assert_close(default.anomaly_maps, all_patches.anomaly_maps)


def test_grid_comes_from_the_patches(model):
    with torch.no_grad():
        output = model(torch.randn(1, 3, 80, 80))
        assert output.layer_maps.shape[-2:] == (10, 10)
        assert output.anomaly_maps.shape == (1, 48, 48)


def test_other_sizes_do_not_change_the_position_embeddings(model, pixel_values):
    with torch.no_grad():
        before = model(pixel_values)
        model(torch.randn(1, 3, 96, 96))
        after = model(pixel_values)
    assert torch.equal(before.scores, after.scores)
    assert model.clip.vision_model.embeddings.position_embedding.weight.shape == (17, 32)


@pytest.mark.parametrize(("mode", "equal"), [("bicubic", True), ("bilinear", False)])
def test_bicubic_positions_equal_the_library(mode, equal, pixel_values):
    model = ViP2ClipForAnomalyDetection(tiny_config(position_interpolation=mode)).eval()
    library = CLIPModel(tiny_clip_config()).eval()
    library.load_state_dict(model.clip.state_dict())
    with torch.no_grad():
        expected = library.get_image_features(pixel_values, interpolate_pos_encoding=True).pooler_output
        actual = model.get_image_features(pixel_values).image_embeds
    assert torch.allclose(actual, expected / expected.norm(dim=-1, keepdim=True), atol=1e-5) is equal


def test_patch_embeddings_are_the_hidden_states_of_the_blocks(model):
    with torch.no_grad():
        patches = model.get_image_features(images := torch.randn(2, 3, 32, 32)).patch_embeds
        vision = model.clip.vision_model
        states = vision(images, output_hidden_states=True).hidden_states
        for index, layer in enumerate(TINY["feature_layers"]):
            expected = model.clip.visual_projection(vision.post_layernorm(states[layer][:, 1:]))
            torch.testing.assert_close(patches[:, index], expected / expected.norm(dim=-1, keepdim=True))


def test_only_feature_layers_are_kept_in_memory(model, pixel_values):
    """After the last block, the outputs of all earlier blocks are freed."""
    outputs, alive = [], []
    blocks = model.clip.vision_model.encoder.layers
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    blocks[-1].register_forward_hook(lambda *_: alive.append(sum(ref() is not None for ref in outputs[:-2])))
    with torch.no_grad():
        model.get_image_features(pixel_values)
    assert len(outputs) == 4
    assert alive == [0]


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_batch_of_one_equals_the_image_in_a_batch(variant, pixel_values):
    model = ViP2ClipForAnomalyDetection(tiny_config(variant)).eval()
    with torch.no_grad():
        together = model(pixel_values)
        for index in range(3):
            alone = model(pixel_values[index : index + 1])
            torch.testing.assert_close(alone.scores[0], together.scores[index], rtol=0, atol=1e-5)
            torch.testing.assert_close(alone.anomaly_maps[0], together.anomaly_maps[index], rtol=0, atol=1e-5)


def test_precomputed_features_replace_pixels(model, batch):
    with torch.no_grad():
        images = model.get_image_features(batch["pixel_values"])
        image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
        expected = model(**batch)
        batch.pop("pixel_values")
        actual = model(**batch, image_embeds=image_embeds, patch_embeds=patch_embeds)
        half = model(image_embeds=image_embeds.half(), patch_embeds=patch_embeds.half())
        scaled = model(image_embeds=3 * image_embeds, patch_embeds=5 * patch_embeds)
    torch.testing.assert_close(actual.scores, expected.scores)
    torch.testing.assert_close(actual.loss, expected.loss)
    torch.testing.assert_close(scaled.scores, expected.scores)
    torch.testing.assert_close(scaled.image_embeds, expected.image_embeds)
    torch.testing.assert_close(half.scores, expected.scores, rtol=0, atol=1e-2)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(clip, pixel_values, implementation):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY, attn_implementation=implementation)
    assert model.clip.text_model.config._attn_implementation == implementation
    assert model.clip.vision_model.config._attn_implementation == implementation
    adapter_weights = adapters(ViP2ClipForAnomalyDetection(tiny_config()))
    model.load_state_dict(adapter_weights, strict=False)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).scores, reference(pixel_values).scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_precisions(variant, dtype, batch):
    model = ViP2ClipForAnomalyDetection(tiny_config(variant)).eval()
    with torch.no_grad():
        expected = model(**batch)
        model = model.to(dtype)
        actual = model(**{**batch, "pixel_values": batch["pixel_values"].to(dtype)})
    results_in = torch.float64 if dtype == torch.float64 else torch.float32
    assert actual.scores.dtype == actual.anomaly_maps.dtype == actual.loss.dtype == results_in
    torch.testing.assert_close(actual.scores.float(), expected.scores, rtol=0, atol=2e-2)
    torch.testing.assert_close(actual.anomaly_maps.float(), expected.anomaly_maps, rtol=0, atol=5e-2)


def test_autocast_keeps_alignment_maps_and_loss_in_float32(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(**batch)
    for tensor in (output.scores, output.layer_maps, output.anomaly_maps, output.loss):
        assert tensor.dtype == torch.float32
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in adapters(model).values())


def test_shapes_on_the_meta_device():
    with torch.device("meta"):
        model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
        output = model(torch.empty(2, 3, 48, 48), labels=torch.zeros(2, dtype=torch.long))
    assert output.anomaly_maps.shape == (2, 48, 48)


@pytest.mark.slow
def test_export_gives_the_same_numbers(model, pixel_values):
    """With a dynamic batch size."""
    dynamic = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=16)}}
    program = torch.export.export(model, (), {"pixel_values": pixel_values}, dynamic_shapes=dynamic, strict=False)
    with torch.no_grad():
        for images in (pixel_values, pixel_values[:1], torch.randn(5, 3, 48, 48)):
            actual, expected = program.module()(pixel_values=images), model(images)
            torch.testing.assert_close(actual.scores, expected.scores)
            torch.testing.assert_close(actual.anomaly_maps, expected.anomaly_maps)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_gives_the_same_numbers(model, pixel_values):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            output = self.model(images)
            return output.scores, output.anomaly_maps

    with torch.no_grad():
        traced = torch.jit.trace(Plain(), pixel_values)
        torch.testing.assert_close(traced(pixel_values), Plain()(pixel_values))


@pytest.mark.slow
def test_compile_without_graph_breaks(model, pixel_values):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values).anomaly_maps, model(pixel_values).anomaly_maps)


def test_settings_reach_the_loss(batch):
    settings = {"local_loss_weight": 0.3, "focal_gamma": 1.5, "focal_smooth": 1e-2}
    model = ViP2ClipForAnomalyDetection(tiny_config("release", **settings)).eval()
    output = model(**batch)
    maps = resize_maps(output.layer_maps, 48)
    targets = (batch["mask_labels"], batch["mask_valid"])
    expected, parts = vip2clip_loss(output.logits, batch["labels"], maps, *targets, **settings)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.loss_components["focal"], parts["focal"])


@pytest.mark.parametrize("image_score", ["pooled_features", "mean_logits"])
def test_image_loss_of_both_variants(batch, image_score):
    """Mean of the layers' cross-entropies, or one cross-entropy of the mean logits."""
    model = ViP2ClipForAnomalyDetection(tiny_config(image_score=image_score, temperature=0.002)).eval()
    change_weights(model.fine_grained_perception)
    output = model(**batch)
    images = model.get_image_features(batch["pixel_values"])
    image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
    logits = model.align(model.get_prompt_features(image_embeds).text_embeds, patch_embeds).layer_logits
    cross_entropy = torch.nn.functional.cross_entropy
    per_layer = torch.stack([cross_entropy(logits[:, i], batch["labels"]) for i in range(3)]).mean()
    at_once = cross_entropy(logits.mean(1), batch["labels"])
    assert (per_layer - at_once).abs() > 1e-5
    expected = per_layer if image_score == "pooled_features" else at_once
    torch.testing.assert_close(output.loss_components["image"], expected)


def test_maps_of_saturated_layers_stay_in_range(model):
    for value in (0.0, 1.0):
        maps = model.get_anomaly_maps(torch.full((1, 3, 2, 6, 6), value))
        assert maps.min() >= 0
        assert maps.max() <= 1


def test_configuration_can_be_changed_after_construction(pixel_values):
    """Settings that do not change the weights are read in every call."""
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    change_weights(model)
    for field, value in (
        ("fgp_num_heads", 4), ("fgp_scaled", False), ("position_interpolation", "bicubic"),
        ("image_score", "mean_logits"), ("temperature", 0.5), ("top_k", 1), ("image_embeds_layernorm", False),
    ):  # fmt: skip
        with torch.no_grad():
            before = model(pixel_values).scores
            setattr(model.config, field, value)
            assert not torch.equal(model(pixel_values).scores, before), field


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_positions_are_resized_in_float32(mode):
    embeddings = [
        ViP2ClipForAnomalyDetection(tiny_config(position_interpolation=mode)).clip.vision_model.embeddings
        for _ in range(2)
    ]
    half, exact = embeddings[0].bfloat16(), embeddings[1].float()
    with torch.no_grad():
        exact.position_embedding.weight.copy_(half.position_embedding.weight)
        actual = half.interpolate_pos_encoding(None, 48, 48)
        expected = exact.interpolate_pos_encoding(None, 48, 48)
    assert actual.shape == (1, 37, 32)
    assert torch.equal(actual, expected.bfloat16())


def test_names_of_modules_that_are_not_split(model):
    names = {type(module).__name__ for module in model.modules()}
    assert set(type(model)._no_split_modules) <= names


# Ablations


def test_without_image_conditioning(pixel_values):
    model = ViP2ClipForAnomalyDetection(tiny_config(use_image_conditioning=False)).eval()
    assert list(model.image_conditioned_adapter.parameters()) == []
    with torch.no_grad():
        image_embeds = model.get_image_features(pixel_values).image_embeds
        prompts = model.get_prompts(image_embeds)
        torch.testing.assert_close(prompts[:, 0, 9:12], model.prompt_learner.object_tokens.expand(3, -1, -1))
        text_embeds = model.get_prompt_features(image_embeds).text_embeds
    assert text_embeds.shape == (3, 2, 16)
    assert torch.equal(text_embeds[0], text_embeds[1])


def test_without_fine_grained_perception(pixel_values):
    model = ViP2ClipForAnomalyDetection(tiny_config(use_fine_grained_perception=False)).eval()
    assert list(model.fine_grained_perception.parameters()) == []
    with torch.no_grad():
        output = model(pixel_values, output_attentions=True)
        text_embeds = model.get_prompt_features(output.image_embeds).text_embeds
    torch.testing.assert_close(output.text_embeds, text_embeds[:, None].expand(-1, 3, -1, -1))
    assert output.cross_attentions is None


def test_dual_alignment_scores_the_image_embedding(batch):
    model = ViP2ClipForAnomalyDetection(tiny_config(alignment="dual")).eval()
    output = model(**batch)
    text_embeds = model.get_prompt_features(output.image_embeds).text_embeds
    cosines = (text_embeds * output.image_embeds[:, None]).sum(-1)
    torch.testing.assert_close(output.scores, (cosines / 0.07).softmax(-1)[:, 1])
    expected = torch.nn.functional.cross_entropy(cosines / 0.07, batch["labels"])
    torch.testing.assert_close(output.loss_components["image"], expected)
    with pytest.raises(ValueError, match="image_embeds is None"):
        model.align(text_embeds, torch.randn(3, 3, 36, 16))


# Training


def test_trainable_parameters_at_full_size():
    """Table 3 of the paper: 4.15 M."""
    with torch.device("meta"):
        model = ViP2ClipForAnomalyDetection(ViP2ClipConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_149_120
    assert sum(p.numel() for p in model.clip.parameters()) == 427_944_193


def frozen(model):
    return (
        not any(p.requires_grad for p in model.clip.parameters())
        and not model.clip.training
        and not any(module.training for module in model.clip.modules() if isinstance(module, CLIPAttention))
        and all(p.requires_grad for p in adapters(model).values())
    )


def test_clip_stays_frozen(model, tmp_path):
    assert frozen(model)
    assert frozen(model.train())
    assert model.training
    assert model.fine_grained_perception.training
    assert frozen(model.eval())
    assert not frozen(model.requires_grad_(True))  # what the user asks for
    model.freeze_backbone()
    assert frozen(model)
    model.save_pretrained(tmp_path)
    for loaded in (ViP2ClipForAnomalyDetection.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert frozen(loaded)
        assert frozen(loaded.train())
    assert frozen(AutoModel.from_config(model.config))


def test_modes_do_not_freeze_again(model):
    """LoRA and users train parts of CLIP. Switching the mode must not undo it."""
    weight = model.clip.vision_model.encoder.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    assert model.train().eval().train().clip is model.clip
    assert weight.requires_grad


def test_clip_computes_without_dropout_in_training_mode(pixel_values):
    clip_config = tiny_clip_config().to_dict()
    for tower in ("text_config", "vision_config"):
        clip_config[tower]["attention_dropout"] = 0.5
    model = ViP2ClipForAnomalyDetection(tiny_config(clip_config=clip_config))
    with torch.no_grad():
        expected = model.eval()(pixel_values).anomaly_maps
        assert torch.equal(model.train()(pixel_values).anomaly_maps, expected)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"image_score": "mean_logits"},
        {"alignment": "dual"},
        {"use_image_conditioning": False},
        {"use_fine_grained_perception": False},
        {"normal_word": None, "normal_token_ids": (3, 4)},
    ],
)
def test_every_adapter_gets_a_gradient_and_clip_none(overrides, batch):
    model = ViP2ClipForAnomalyDetection(tiny_config(**overrides)).train()
    model(**batch).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in adapters(model).values())
    assert all(p.grad is None for p in model.clip.parameters())
    if model.config.use_fine_grained_perception:
        assert torch.equal(model.fine_grained_perception.k_proj.bias.grad, torch.zeros(16))
        assert model.fine_grained_perception.q_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("masks", ["none", "all invalid"])
@pytest.mark.parametrize("alignment", ["unified", "dual"])
def test_image_labels_alone_give_every_adapter_a_gradient(batch, masks, alignment):
    model = ViP2ClipForAnomalyDetection(tiny_config(alignment=alignment))
    if masks == "none":
        del batch["mask_labels"], batch["mask_valid"]
    else:
        batch["mask_valid"] = torch.zeros(3, dtype=torch.bool)
    output = model.train()(**batch)
    torch.testing.assert_close(output.loss, output.loss_components["image"])
    output.loss.backward()
    assert all(p.grad is not None for p in adapters(model).values())


def test_an_invalid_mask_has_no_effect(model, batch):
    expected = model(**batch).loss
    batch["mask_labels"] = batch["mask_labels"].float()
    for placeholder in (1, 255, float("nan")):
        batch["mask_labels"][2] = placeholder
        loss = model(**batch).loss
        torch.testing.assert_close(loss, expected)
        model.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in adapters(model).values())


def test_training_lowers_the_loss(model, batch):
    optimizer = torch.optim.Adam(adapters(model).values(), lr=1e-2)
    before = copy.deepcopy(model.clip.state_dict())
    losses = []
    for _ in range(15):
        loss = model.train()(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.clip.state_dict().items())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_recomputes_the_text_tower(model, batch, use_reentrant):
    reference = copy.deepcopy(model)
    reference.train()(**batch).loss.backward()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    calls = []
    for block in model.clip.text_model.encoder.layers:
        # Not a hook of the block: the library checkpoints its `forward`, inside of its hooks.
        block.self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = model.train()(**batch).loss
    assert len(calls) == 2
    loss.backward()
    assert len(calls) == 4
    for name, parameter in adapters(model).items():
        torch.testing.assert_close(parameter.grad, dict(reference.named_parameters())[name].grad, msg=name)
    calls.clear()
    model.eval()(**batch).loss.backward()
    assert len(calls) == 2


def test_loss_is_not_rescaled_by_the_trainer():
    assert ViP2ClipForAnomalyDetection.accepts_loss_kwargs is False
    assert ViP2ClipForAnomalyDetection.input_modalities == ("image",)
    # CLIP has another configuration, so its checkpoints are loaded by from_clip.
    assert ViP2ClipForAnomalyDetection.base_model_prefix == ""


# Building and loading


@pytest.mark.parametrize("kind", ["model", "folder"])
def test_from_clip(clip, clip_folder, kind, pixel_values):
    source = clip if kind == "model" else clip_folder
    model = ViP2ClipForAnomalyDetection.from_clip(source, variant="release", **TINY)
    assert_same_weights(model.clip, clip)
    assert model.config.image_score == "mean_logits"
    assert model.dtype == torch.float32
    assert not model.training
    assert frozen(model)
    assert model.provenance.backbone_id is None
    assert all(p.requires_grad for p in clip.parameters())  # the model of the caller is not frozen
    weights = (model.clip.visual_projection.weight, clip.visual_projection.weight)
    assert (len({weight.data_ptr() for weight in weights}) == 1) == (kind == "model")  # shared, not copied


def test_from_clip_initializes_like_the_release(clip):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **{**TINY, "meta_net_hidden_size": 64})
    perception = model.fine_grained_perception.q_proj
    assert perception.weight.abs().max() <= 16**-0.5
    assert perception.weight.std().item() == pytest.approx((16 * 3) ** -0.5, rel=0.1)
    assert perception.bias.abs().max() > 0
    assert model.prompt_learner.normal_context.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.image_conditioned_adapter.input_bias.std().item() == pytest.approx(0.02, rel=0.6)


def test_from_clip_is_deterministic(clip):
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(ViP2ClipForAnomalyDetection.from_clip(clip, **TINY))
    assert_same_weights(*models)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_from_clip_dtype_does_not_depend_on_the_file(clip, tmp_path, dtype):
    clip.half().save_pretrained(tmp_path)
    kwargs = {} if dtype is None else {"dtype": dtype}
    model = ViP2ClipForAnomalyDetection.from_clip(tmp_path, **TINY, **kwargs)
    expected = dtype or torch.float32
    assert {p.dtype for p in model.clip.parameters()} == {expected}
    assert {p.dtype for p in adapters(model).values()} == {torch.float32}
    torch.testing.assert_close(model.clip.visual_projection.weight, clip.visual_projection.weight.to(expected))


def test_from_clip_stores_the_hub_id_of_the_backbone(clip_folder, tmp_path):
    commit = put_in_hub_cache(clip_folder, "org/clip", tmp_path / "cache")
    model = ViP2ClipForAnomalyDetection.from_clip("org/clip", **TINY, cache_dir=tmp_path / "cache")
    assert (model.provenance.backbone_id, model.provenance.backbone_revision) == ("org/clip", commit)


class WordTokenizer:
    bos_token_id, eos_token_id = 101, 102

    def __call__(self, text, add_special_tokens):
        assert add_special_tokens is False
        return {"input_ids": [len(part) for part in text.split("-")]}


def test_from_clip_takes_ids_from_a_tokenizer(clip):
    model = ViP2ClipForAnomalyDetection.from_clip(
        clip, WordTokenizer(), **TINY, normal_word="spot-less", anomalous_word="ruined", anomalous_token_ids=(77,)
    )
    assert (model.config.normal_word, model.config.normal_token_ids) == ("spot-less", (4, 4))
    assert model.config.anomalous_token_ids == (77,)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (101, 102)


def test_from_clip_with_another_tokenizer_of_the_same_size(clip):
    """The ids of the default words are not those of CLIP, so the words are not stored with them."""
    config = ViP2ClipForAnomalyDetection.from_clip(clip, WordTokenizer(), **TINY).config
    assert (config.normal_word, config.normal_token_ids) == (None, (4,))
    assert (config.anomalous_word, config.anomalous_token_ids) == (None, (7,))


def test_from_clip_with_an_empty_tokenizer(clip_folder):
    """transformers creates an empty tokenizer from a folder without tokenizer files."""
    with pytest.raises(ValueError, match=r"no tokens for 'intact' .*its files may be missing"):
        ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY, normal_word="intact", anomalous_word="broken")


def test_from_clip_without_a_tokenizer_for_an_unknown_word(clip):
    with pytest.raises(ValueError, match=r"'spotless'.*tokenizer=.*flawless"):
        ViP2ClipForAnomalyDetection.from_clip(clip, **TINY, normal_word="spotless")


def test_bad_sources(clip, clip_folder, tmp_path):
    tiny_config().save_pretrained(tmp_path / "vip")
    with pytest.raises(ValueError, match=r"model_type 'clip'.*found model_type 'vip2clip'"):
        ViP2ClipForAnomalyDetection.from_clip(tmp_path / "vip", **TINY)
    with pytest.raises(OSError, match="org/absent"):
        ViP2ClipForAnomalyDetection.from_clip("org/absent", **TINY)
    with pytest.raises(OSError, match="org/absent"):
        ViP2ClipForAnomalyDetection.from_pretrained("org/absent")
    with pytest.raises(ValueError, match=r"found model_type 'clip'.*from_clip"):
        ViP2ClipForAnomalyDetection.from_pretrained(clip_folder)
    with pytest.raises(StrictDataclassError, match=r"image_size is 518; .* \(nearest: 512, 520\)"):
        ViP2ClipForAnomalyDetection.from_clip(clip)
    with pytest.raises(ValueError, match="variant"):
        ViP2ClipForAnomalyDetection.from_clip(clip, variant="draft")
    with pytest.raises(ValueError, match=r"'torch_dtype' is not a field .* did you mean 'dtype'\?"):
        ViP2ClipForAnomalyDetection.from_clip(clip, **TINY, torch_dtype=torch.bfloat16)
    weights = {k: v for k, v in clip.state_dict().items() if "text_projection" not in k}
    clip.save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(RuntimeError, match=r"lacks 1 weights \(text_projection.weight"):
        ViP2ClipForAnomalyDetection.from_clip(tmp_path / "part", **TINY)


def test_missing_weights_raise_an_error(model, tmp_path):
    weights = model.state_dict()
    without_clip = {k: v for k, v in weights.items() if not k.startswith("clip.")}
    model.save_pretrained(tmp_path / "adapters", state_dict=without_clip)
    with pytest.raises(RuntimeError, match=r"lacks \d+ of the model's weights.*random.*backbone="):
        ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "adapters")
    del weights["fine_grained_perception.q_proj.weight"]
    model.save_pretrained(tmp_path / "partial", state_dict=weights)
    with pytest.raises(RuntimeError, match="lacks 1 of"):
        AutoModel.from_pretrained(tmp_path / "partial")
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(tmp_path / "whole", num_context_tokens=4)


def test_loading_options(model, tmp_path, pixel_values):
    weights = {k.replace("normal_context", "v"): tensor for k, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=weights)
    names = {r"^prompt_learner\.v$": "prompt_learner.normal_context"}
    assert_same_weights(ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, key_mapping=names), model)


def test_random_weights_on_request(model, tmp_path):
    """A caller who asks for the report of missing weights, or to ignore shapes, gets a model with random weights."""
    weights = {k: v for k, v in model.state_dict().items() if k != "fine_grained_perception.q_proj.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"fine_grained_perception.q_proj.weight"}
    assert frozen(loaded)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, num_context_tokens=4, ignore_mismatched_sizes=True)
    assert loaded.prompt_learner.normal_context.shape == (4, 16)
    assert torch.equal(loaded.prompt_learner.object_tokens, model.prompt_learner.object_tokens)
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "object" not in k})
    with pytest.raises(RuntimeError, match=r"lacks 1 of .*prompt_learner\.object_tokens"):
        AutoModel.from_pretrained(tmp_path, num_context_tokens=4, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_raise_an_error(model, tmp_path, value):
    with torch.no_grad():
        model.fine_grained_perception.q_proj.weight[1, 2] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"fine_grained_perception\.q_proj\.weight"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_save_and_load(model, tmp_path, pixel_values, max_shard_size):
    change_weights(model)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "100KB")
    for loaded in (ViP2ClipForAnomalyDetection.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert_same_weights(model, loaded)
        with torch.no_grad():
            assert torch.equal(loaded(pixel_values).scores, model(pixel_values).scores)


def test_save_and_load_bfloat16(model, tmp_path):
    change_weights(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.clip.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in adapters(loaded).values()} == {torch.float32}
    assert_same_weights(model, loaded)
    assert ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_loading_with_overrides_and_info(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, top_k=9, output_loading_info=True)
    assert loaded.config.top_k == 9
    assert not info["missing_keys"]
    assert ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, config=tiny_config(top_k=4)).config.top_k == 4
    with pytest.raises(StrictDataclassError, match="top_k is 99"):
        ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, top_k=99)


def test_a_modified_configuration_is_checked():
    config = tiny_config()
    config.top_k = 1000
    with pytest.raises(StrictDataclassError, match="top_k is 1000"):
        ViP2ClipForAnomalyDetection(config)


def test_device_map(model, tmp_path, pixel_values):
    model.save_pretrained(tmp_path)
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, device_map="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).scores, model(pixel_values).scores)


# Bad input


def test_bad_pixels(model):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 48, 40\); expected .* multiple of 8"):
        model(torch.zeros(1, 3, 48, 40))
    with pytest.raises(ValueError, match="multiple of 8"):
        model(torch.zeros(1, 3, 50, 50))
    with pytest.raises(ValueError, match=r"\(batch_size, 3, side, side\)"):
        model(torch.zeros(1, 1, 48, 48))
    with pytest.raises(ValueError, match=r"shape \(3, 48, 48\)"):
        model(torch.zeros(3, 48, 48))


def test_bad_combinations_of_inputs(model, pixel_values):
    images = model.get_image_features(pixel_values)
    image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
    with pytest.raises(ValueError, match="Pass pixel_values, or both"):
        model()
    with pytest.raises(ValueError, match="or both image_embeds and patch_embeds"):
        model(image_embeds=image_embeds)
    with pytest.raises(ValueError, match="not both"):
        model(pixel_values, image_embeds=image_embeds, patch_embeds=patch_embeds)
    with pytest.raises(ValueError, match="35 patches; expected a square"):
        model(image_embeds=image_embeds, patch_embeds=patch_embeds[:, :, :35])
    with pytest.raises(ValueError, match="top_k is 37; expected an integer from 1 to 36"):
        model(pixel_values, top_k=37)
    with pytest.raises(ValueError, match=r"shape \(1, 16\) and patch_embeds \(3, 3, 36, 16\)"):
        model(image_embeds=image_embeds[:1], patch_embeds=patch_embeds)
    with pytest.raises(ValueError, match=r"expected \(batch_size, 16\)"):
        model(image_embeds=image_embeds[:, :8], patch_embeds=patch_embeds[..., :8])
    with pytest.raises(ValueError, match=r"shape \(0, 3, 48, 48\)"):
        model(pixel_values[:0])
    with pytest.raises(TypeError, match="unknown arguments topk"):
        model(pixel_values, topk=3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", torch.tensor([0, 1]), r"labels has shape \(2,\); expected \(3,\)"),
        ("mask_labels", torch.zeros(3, 32, 32), r"mask_labels has shape \(3, 32, 32\); expected \(3, 48, 48\)"),
        ("mask_valid", torch.ones(2, dtype=torch.bool), "mask_valid has shape"),
    ],
)
def test_bad_labels(model, batch, name, value, message):
    batch[name] = value
    with pytest.raises(ValueError, match=message):
        model(**batch)


def test_masks_of_255(model, batch):
    """Every value but 0 is anomalous, so a mask file as it is gives the same loss."""
    expected = model(**batch).loss
    batch["mask_labels"] = batch["mask_labels"] * 255
    torch.testing.assert_close(model(**batch).loss, expected, rtol=0, atol=0)
