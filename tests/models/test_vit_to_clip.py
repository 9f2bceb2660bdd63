import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from vip2clip_hf.models.vit_reading import from_state_dict, read_timm, read_vit
from vip2clip_hf.models.vit_to_clip import extra_channels, vit_to_clip


SHAPE = {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
SIZES = {1: (24, 40), 2: (32, 64), 3: (48, 96), 4: (64, 96)}  # width and MLP by number of heads
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def shaped(heads, **more):
    return {**SHAPE, "num_attention_heads": heads, "hidden_size": SIZES[heads][0], **more}


def disturb(model, seed=1):
    """Give every weight a value that matters, also biases and scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def normalized(image, mean, std):
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
def clip_features(clip, image):
    tower = clip.vision_model
    pixels = normalized(image, CLIP_MEAN, CLIP_STD)
    states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
    return [clip.visual_projection(tower.post_layernorm(state)) for state in states]


@torch.no_grad()
def original_features(model, image, vit):
    states = model(pixel_values=normalized(image, vit.mean, vit.std), output_hidden_states=True).hidden_states[1:]
    return [model.layernorm(state) for state in states]


def deviation(found, expected):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("heads", SIZES)
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_vit(heads, act, image, tmp_path):
    config = ViTConfig(**shaped(heads), intermediate_size=SIZES[heads][1], hidden_act=act, layer_norm_eps=1e-3)
    model = disturb(ViTModel(config))
    model.save_pretrained(tmp_path)
    vit = read_vit(tmp_path)
    expected = original_features(model, image, vit)
    assert deviation(vit.features(normalized(image, vit.mean, vit.std)), expected) < 1e-5
    clip = vit_to_clip(vit)
    assert clip.config.vision_config.hidden_size == vit.width + extra_channels(heads)
    assert deviation(clip_features(clip, image), expected) < 1e-4


@pytest.mark.parametrize(("heads", "bias"), [(2, True), (3, False)])
def test_dinov2(heads, bias, image, tmp_path):
    model = disturb(Dinov2Model(Dinov2Config(**shaped(heads), qkv_bias=bias)))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]})
    )
    vit = read_vit(tmp_path)
    assert vit.mean == (0.4, 0.5, 0.6)
    expected = original_features(model, image, vit)
    assert deviation(clip_features(vit_to_clip(vit), image), expected) < 1e-4
    half = vit_to_clip(vit).half().float()
    assert 1e-4 < deviation(clip_features(half, image), expected) < 1e-2


def timm_weights(model):
    """Rename the weights of a transformers ViT as timm does."""
    found = {}
    names = (("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("mlp.fc1", "mlp.fc1"),
             ("mlp.fc2", "mlp.fc2"), ("attention.o_proj", "attn.proj"))  # fmt: skip
    for number, layer in enumerate(model.layers):
        state = layer.state_dict()
        for kind in ("weight", "bias"):
            parts = [state[f"attention.{part}_proj.{kind}"] for part in "qkv"]
            found[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
            for old, new in names:
                found[f"blocks.{number}.{new}.{kind}"] = state[f"{old}.{kind}"]
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = getattr(model.layernorm, kind).data
        found[f"patch_embed.proj.{kind}"] = getattr(model.embeddings.patch_embeddings.projection, kind).data
    found["cls_token"], found["pos_embed"] = model.embeddings.cls_token.data, model.embeddings.position_embeddings.data
    found["head.weight"] = torch.zeros(5, found["norm.weight"].shape[0])
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def test_timm(image, tmp_path):
    config = ViTConfig(**shaped(3), intermediate_size=96, layer_norm_eps=1e-6)
    model = disturb(ViTModel(config, add_pooling_layer=False))
    settings = {"architecture": "vit_test_patch8_32", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    save_file(timm_weights(model), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="num_heads of a ViT of width 48 is unknown"):
        read_vit(tmp_path)
    vit = read_vit(tmp_path, num_heads=3)
    expected = original_features(model, image, vit)
    assert deviation(clip_features(vit_to_clip(vit), image), expected) < 1e-4

    # A scale of each layer is folded in, and positions may leave out the class token.
    weights = timm_weights(model)
    for block in range(3):
        for number, layer in ((1, "attn.proj"), (2, "mlp.fc2")):
            scale = torch.rand(48) + 0.5
            weights[f"blocks.{block}.ls{number}.gamma"] = scale
            for kind in ("weight", "bias"):
                tensor = weights[f"blocks.{block}.{layer}.{kind}"]
                weights[f"blocks.{block}.{layer}.{kind}"] = tensor / scale.view(-1, *[1] * (tensor.ndim - 1))
    weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    scaled = read_timm(weights, settings, num_heads=3)
    assert deviation(clip_features(vit_to_clip(scaled), image), expected) < 1e-4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("norm_pre.weight", "before the blocks"),
        ("reg_token", "register tokens"),
        ("blocks.0.attn.q_norm.weight", "queries and keys"),
        ("blocks.0.mlp.fc1_g.weight", "SwiGLU"),
        ("fc_norm.weight", "mean of the patches"),
        ("blocks.0.adapter.weight", "not those of a plain ViT"),
    ],
)
def test_unfit_timm(name, reason):
    weights = timm_weights(ViTModel(ViTConfig(**shaped(3), intermediate_size=96)))
    with pytest.raises(ValueError, match=reason):
        read_timm({**weights, name: torch.zeros(48)}, {}, num_heads=3)
    del weights["cls_token"]
    with pytest.raises(ValueError, match="A class token is needed"):
        read_timm(weights, {}, num_heads=3)


def test_packed_swiglu_and_odd_grids():
    weights = timm_weights(ViTModel(ViTConfig(**shaped(3), intermediate_size=96)))
    packed = {**weights, "blocks.0.mlp.fc2.weight": torch.zeros(48, 48)}
    with pytest.raises(ValueError, match="as SwiGLU"):
        read_timm(packed, {}, num_heads=3)
    with pytest.raises(ValueError, match="square grid"):
        read_timm({**weights, "pos_embed": torch.zeros(1, 13, 48)}, {}, num_heads=3)
    with pytest.raises(ValueError, match="divisor"):
        read_timm(weights, {}, num_heads=5)


def test_unfit_transformers(tmp_path, clip):
    Dinov2Model(Dinov2Config(**shaped(2), use_swiglu_ffn=True)).save_pretrained(tmp_path / "swiglu")
    with pytest.raises(ValueError, match="SwiGLU"):
        read_vit(tmp_path / "swiglu")
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shaped(2))).save_pretrained(tmp_path / "registers")
    with pytest.raises(ValueError, match="dinov2_with_registers"):
        read_vit(tmp_path / "registers")
    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="'clip'; expected timm models"):
        read_vit(tmp_path / "clip")
    with pytest.raises(OSError, match="could not be loaded"):
        read_vit(tmp_path / "nothing")


def test_a_classifier_and_a_projection(image, tmp_path):
    model = disturb(ViTForImageClassification(ViTConfig(**shaped(2), intermediate_size=64)))
    model.save_pretrained(tmp_path)
    vit = read_vit(tmp_path)
    projection = torch.randn(7, 32)
    clip = vit_to_clip(vit, projection=projection)
    assert isinstance(clip, CLIPModel)
    assert clip.config.projection_dim == 7
    expected = [one @ projection.T for one in original_features(model.vit, image, vit)]
    assert deviation(clip_features(clip, image), expected) < 1e-4
    same = from_state_dict(
        model.state_dict(), num_heads=2, hidden_act="gelu", eps=1e-12, mean=vit.mean, std=vit.std
    )  # fmt: skip
    assert torch.equal(same.weights["pos_embed"], vit.weights["pos_embed"])
