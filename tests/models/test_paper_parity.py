"""Compare the model with the paper's equations in float64 (fixtures/oracle_paper, inputs normalized first)."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from helpers.tiny import FIXTURES, tiny_clip_config
from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection
from vip2clip_hf.models.vip2clip.loss_vip2clip import dice_loss, focal_loss, image_loss, vip2clip_loss
from vip2clip_hf.models.vip2clip.maps_vip2clip import resize_maps


EXPECTED = load_file(FIXTURES / "oracle_paper" / "expected_prenorm.safetensors")
INPUTS = load_file(FIXTURES / "oracle_paper" / "inputs.safetensors")
LAYERS = (6, 12, 18, 24)


def build(dtype: torch.dtype, **overrides) -> ViP2ClipForAnomalyDetection:
    config = ViP2ClipConfig(
        clip_config=tiny_clip_config(projection_dim=40),
        image_size=56,
        feature_layers=(1, 2, 3, 4),
        top_k=5,
        smoothing_sigma=4.0,
        **overrides,
    )
    model = ViP2ClipForAnomalyDetection(config).to(dtype).eval()
    perception = model.fine_grained_perception
    with torch.no_grad():
        for name in ("q", "k", "v", "o"):
            linear = getattr(perception, "out_proj" if name == "o" else f"{name}_proj")
            linear.weight.copy_(INPUTS[f"W_{name}"].T)  # the paper applies its matrices from the right
            linear.bias.zero_()
    return model


@torch.no_grad()
def compute(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model, values = build(dtype), {}
    patch_embeds = torch.stack([INPUTS[f"F.layer{layer}"] for layer in LAYERS], dim=1).to(dtype)
    text_embeds, image_embeds = INPUTS["G_t"].to(dtype), INPUTS["f"].to(dtype)
    labels, masks = INPUTS["labels"], INPUTS["masks"]

    dual = build(dtype, alignment="dual").align(text_embeds, patch_embeds, image_embeds)
    values["eq1.global_probs"] = dual.logits.softmax(-1)

    output = model.align(text_embeds, patch_embeds)
    cosines = F.normalize(patch_embeds, dim=-1) @ output.text_embeds.mT
    pooled = model.pool_patches(F.normalize(patch_embeds, dim=-1), cosines, 5)
    upsampled = resize_maps(output.layer_maps, 56)
    for index, layer in enumerate(LAYERS):
        maps = upsampled[:, index]
        probabilities = output.layer_maps[:, index].flatten(2).mT
        parts = {
            "focal": focal_loss(maps, masks),
            "dice_normal": dice_loss(maps[:, 0], 1 - masks.to(dtype)),
            "dice_anomalous": dice_loss(maps[:, 1], masks),
        }
        values.update(
            {
                f"eq6.attention.layer{layer}": output.cross_attentions[index][:, 0],
                f"eq6.refined_prompts.layer{layer}": output.text_embeds[:, index],
                f"eq1.patch_cosine.layer{layer}": cosines[:, index],
                f"eq1.patch_probs.layer{layer}": probabilities,
                f"eq7.normal_map.layer{layer}": maps[:, 0],
                f"eq7.anomalous_map.layer{layer}": maps[:, 1],
                f"eq8.topk_indices.layer{layer}": probabilities[..., 1].topk(5).indices.sort().values,
                f"eq8.pooled_feature.layer{layer}": pooled[:, index],
                f"eq8.pooled_cosine.layer{layer}": output.layer_logits[:, index] * model.config.temperature,
                f"eq9.global.layer{layer}": image_loss(output.layer_logits[:, index], labels),
                **{f"eq10.{name}.layer{layer}": value for name, value in parts.items()},
                f"eq10.local.layer{layer}": sum(parts.values()),
            }
        )
    loss, parts = vip2clip_loss(output.layer_logits, labels, upsampled, masks)
    values["layer_scores"] = output.layer_logits.softmax(-1)[..., 1]
    values["score"] = output.scores
    values["eq9.global"] = parts["image"]
    values["eq9.local_sum"] = parts["focal"] + parts["dice_normal"] + parts["dice_anomalous"]
    values["eq9.total"] = loss
    values["eq11.map_unsmoothed"] = upsampled[:, :, 1].mean(1)
    values["eq11.map"] = model.get_anomaly_maps(output.layer_maps)
    return values


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 5e-5), (torch.float64, 1e-9)])
def test_every_equation_matches(dtype, atol):
    values = compute(dtype)
    assert set(values) == set(EXPECTED)
    for name, value in values.items():
        expected = EXPECTED[name]
        if name.startswith("eq6.refined_prompts"):
            expected = F.normalize(expected, dim=-1)
        expected = expected.reshape(value.shape)  # scalars are stored with one axis
        if value.is_floating_point():
            assert value.dtype == dtype, name
        torch.testing.assert_close(
            value.to(expected.dtype), expected, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
