"""Read plain vision transformers: checkpoints of timm (without timm) and of transformers."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from transformers.utils import logging
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.hub import cached_file

from .plain_vit import PlainViT
from .vip2clip.backbone_vip2clip import naming


logger = logging.get_logger(__name__)
LAYOUTS = "timm models named vit_* or deit*, and transformers models of the types vit and dinov2"
# Number of heads of timm models, which their weights do not show.
HEADS = {192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
TIMM_EPS = 1e-6
# Weights that do not change the features of the patches.
_UNUSED = re.compile(r"(head|head_drop|classifier|pooler|pre_logits)\.|mask_token|embeddings\.mask_token")
_UNFIT = {
    r"norm_pre\.": "it normalizes the embeddings before the blocks; a CLIP tower of the same weights may exist",
    r"reg_token|register_tokens": "it has register tokens",
    r"dist_token|distillation_token": "it has a distillation token",
    r"rope|rel_pos|relative_position": "its positions are not learned embeddings",
    r"(q|k)_norm\.": "it normalizes queries and keys",
    r"mlp\.(w12|w3|weights_in|weights_out|fc1_g|fc1_x)": "its blocks use SwiGLU",
    r"fc_norm\.": "it normalizes the mean of the patches instead of each patch",
    r"attn\.norm\.|mlp\.norm\.": "it has more normalizations per block",
}
_RENAMED = (
    (r"^(vit|dinov2)\.", ""),
    (r"^(encoder\.layer|encoder\.layers|layers|layer|blocks)\.", "blocks."),
    (r"attention\.attention\.(query|key|value)\.", lambda found: f"attention.{found[1][0]}_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"attention\.(q|k|v)_proj\.", r"\1."),
    (r"attention\.o_proj\.|attn\.proj\.", "out."),
    (r"attn\.qkv\.", "qkv."),
    (r"\.mlp\.", "."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"\.(ls|layer_scale)([12])\.(gamma|lambda1)$", r".scale\2"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^(embeddings\.patch_embeddings\.projection|patch_embed\.proj)\.", "patch."),
    (r"^blocks\.", ""),
)  # fmt: skip


def read_vit(source: str | os.PathLike, *, num_heads: int | None = None, revision: str | None = None) -> PlainViT:
    """
    Read a plain vision transformer.

    Args:
        source (`str` or `os.PathLike`): folder or Hub id of a checkpoint of timm or transformers.
        num_heads (`int`, *optional*): number of attention heads. By default, that of the configuration. For a timm
            model of an unusual width, it must be set.
        revision (`str`, *optional*): branch, tag or commit on the Hub.

    Returns:
        [`PlainViT`]: the vision transformer, with weights in float32.

    Raises:
        OSError: if the checkpoint is not found or damaged.
        ValueError: if the architecture is not a plain ViT. The message says what differs.
    """
    source = os.fspath(source)
    with naming("ViT checkpoint", source):
        path = _file(source, "config.json", revision)
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if "model_type" not in config:
            architecture = config.get("architecture", "")
            if not str(architecture).startswith(("vit_", "deit")):
                raise ValueError(f"The architecture of {source!r} is {architecture!r}; expected {LAYOUTS}.")
            weights = load_file(_file(source, "model.safetensors", revision))
            return read_timm(weights, config, num_heads=num_heads)
        if config["model_type"] not in ("vit", "dinov2"):
            raise ValueError(f"model_type of {source!r} is {config['model_type']!r}; expected {LAYOUTS}.")
        if config.get("use_swiglu_ffn"):
            raise ValueError(f"{source!r} is not a plain ViT: its blocks use SwiGLU; expected a ViT with a plain MLP.")
        model_config = AutoConfig.from_pretrained(source, revision=revision)
        model, info = AutoModel.from_pretrained(
            source, config=model_config, dtype=torch.float32, revision=revision, output_loading_info=True
        )  # fmt: skip
    missing = sorted(name for name in info["missing_keys"] if not _UNUSED.match(name))
    if missing:
        raise ValueError(f"{source!r} lacks {len(missing)} weights ({missing[0]}, ...); expected a complete ViT.")
    default = (0.5,) * 3 if config["model_type"] == "vit" else tuple(IMAGENET_DEFAULT_MEAN)
    deviation = (0.5,) * 3 if config["model_type"] == "vit" else tuple(IMAGENET_DEFAULT_STD)
    mean, std = _normalization(source, revision, default, deviation)
    return from_state_dict(
        model.state_dict(),
        num_heads=model_config.num_attention_heads,
        hidden_act=model_config.hidden_act,
        eps=model_config.layer_norm_eps,
        mean=mean,
        std=std,
    )


def read_timm(weights: dict[str, torch.Tensor], config: dict[str, Any], *, num_heads: int | None = None) -> PlainViT:
    """
    Read a vision transformer from the weights and the `config.json` of timm.

    Args:
        weights (`dict[str, torch.Tensor]`): weights with timm's names, such as `blocks.0.attn.qkv.weight`.
        config (`dict`): content of `config.json`: `architecture`, `model_args` and `pretrained_cfg`.
        num_heads (`int`, *optional*): number of attention heads.

    Returns:
        [`PlainViT`]: the vision transformer.

    Raises:
        ValueError: if the architecture is not a plain ViT, or the number of heads is unknown.
    """
    arguments, pretrained = config.get("model_args") or {}, config.get("pretrained_cfg") or config
    architecture = str(config.get("architecture", ""))
    width = weights["cls_token"].shape[-1] if "cls_token" in weights else 0
    heads = num_heads or arguments.get("num_heads") or HEADS.get(width)
    if heads is None:
        raise ValueError(f"num_heads of a ViT of width {width} is unknown; expected an integer. Set num_heads.")
    quick = "quickgelu" in architecture or arguments.get("act_layer") == "quick_gelu"
    other = arguments.get("act_layer")
    if other not in (None, "gelu", "quick_gelu"):
        raise ValueError(f"act_layer is {other!r}; expected 'gelu' or 'quick_gelu'.")
    return from_state_dict(
        weights,
        num_heads=int(heads),
        hidden_act="quick_gelu" if quick else "gelu",
        eps=TIMM_EPS,
        mean=tuple(pretrained.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(pretrained.get("std", IMAGENET_DEFAULT_STD)),
    )


def from_state_dict(
    state: dict[str, torch.Tensor],
    *,
    num_heads: int,
    hidden_act: str,
    eps: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> PlainViT:
    """
    Create a [`PlainViT`] from weights with the names of timm or transformers.

    Args:
        state (`dict[str, torch.Tensor]`): the weights.
        num_heads, hidden_act, eps, mean, std: see [`PlainViT`].

    Returns:
        [`PlainViT`]: the vision transformer.

    Raises:
        ValueError: if weights are missing or unknown, or have other shapes.
    """
    for pattern, reason in _UNFIT.items():
        if name := next((name for name in state if re.search(pattern, name)), None):
            raise ValueError(f"The ViT cannot be rewritten as a CLIP tower: {reason} ({name}); expected {LAYOUTS}.")
    named = {_canonical(name): t.detach().float() for name, t in state.items() if not _UNUSED.match(name)}
    numbers = [int(name.split(".")[0]) for name in named if name[0].isdecimal()]
    num_layers = max(numbers, default=-1) + 1
    weights, scales = _split(named, num_layers)
    for block in range(num_layers):
        for layer, scale in (("out", "scale1"), ("fc2", "scale2")):
            if f"{block}.{scale}" in scales:
                factor = scales[f"{block}.{scale}"]
                weights[f"{block}.{layer}.weight"] = weights[f"{block}.{layer}.weight"] * factor[:, None]
                weights[f"{block}.{layer}.bias"] = weights[f"{block}.{layer}.bias"] * factor
    for block in range(num_layers):
        inner, outer = len(weights[f"{block}.fc1.weight"]), weights[f"{block}.fc2.weight"].shape[1]
        if inner != outer:
            raise ValueError(
                f"The MLP of block {block} has {inner} values before its activation and {outer} after it, as SwiGLU "
                "has; expected the same number."
            )
    width, patch = len(weights["cls_token"]), weights["patch.weight"].shape[-1]
    if width % num_heads:
        raise ValueError(f"num_heads is {num_heads}; expected a divisor of the width {width}.")
    if weights["patch.weight"].shape[1] != 3 or weights["patch.weight"].shape[2] != patch:
        raise ValueError(
            f"The patch embedding has the shape {tuple(weights['patch.weight'].shape)}; expected 3 colours and square "
            "patches."
        )
    positions = weights["pos_embed"]
    side = round((len(positions) - 1) ** 0.5)
    if side**2 == len(positions) - 1:
        image_size = side * patch
    elif round(len(positions) ** 0.5) ** 2 == len(positions):  # the class token has no position
        weights["pos_embed"] = torch.cat([torch.zeros(1, width), positions])
        image_size = round(len(positions) ** 0.5) * patch
    else:
        raise ValueError(f"pos_embed has {len(positions)} positions; expected those of a square grid and 1 more.")
    return PlainViT(weights, num_heads, num_layers, patch, image_size, hidden_act, eps, tuple(mean), tuple(std))


def _canonical(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name


def _split(named: dict[str, torch.Tensor], num_layers: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split `qkv`, add biases that are left out, separate the scales, and check that nothing is missing or left."""
    weights = {name: tensor for name, tensor in named.items() if ".scale" not in name}
    scales = {name: tensor for name, tensor in named.items() if ".scale" in name}
    for block in range(num_layers):
        for kind in ("weight", "bias"):
            joint = weights.pop(f"{block}.qkv.{kind}", None)
            if joint is not None:
                weights.update({f"{block}.{n}.{kind}": t for n, t in zip("qkv", joint.chunk(3))})
        for name in ("q", "k", "v", "out", "fc1", "fc2"):
            if f"{block}.{name}.weight" in weights:
                rows = len(weights[f"{block}.{name}.weight"])
                weights.setdefault(f"{block}.{name}.bias", torch.zeros(rows))
    if "patch.weight" in weights:
        weights.setdefault("patch.bias", torch.zeros(len(weights["patch.weight"])))
    layers = ("norm1", "q", "k", "v", "out", "norm2", "fc1", "fc2")
    expected = {"cls_token", "pos_embed", "patch.weight", "patch.bias", "norm.weight", "norm.bias"}
    expected |= {f"{b}.{name}.{kind}" for b in range(num_layers) for name in layers for kind in ("weight", "bias")}
    missing, unknown = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if missing or not num_layers:
        what = missing[0] if missing else "blocks"
        hint = " A class token is needed." if "cls_token" in missing else ""
        raise ValueError(f"The ViT has no {what}; expected {LAYOUTS}.{hint}")
    if unknown:
        raise ValueError(f"The ViT has weights that are not those of a plain ViT ({unknown[0]}); expected {LAYOUTS}.")
    for name in ("cls_token", "pos_embed"):
        weights[name] = weights[name].reshape(-1, weights[name].shape[-1])
    weights["cls_token"] = weights["cls_token"][0]
    return weights, scales


def _file(source: str, name: str, revision: str | None) -> str:
    path = cached_file(source, name, revision=revision)
    if path is None:
        raise OSError(f"It does not contain {name}.")
    return path


def _normalization(
    source: str, revision: str | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read mean and deviation of the images of a transformers checkpoint."""
    path = cached_file(
        source, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    settings = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    if "image_mean" not in settings or "image_std" not in settings:
        logger.warning_once(
            f"{source} does not say how its images are normalized; using the mean {mean} and the deviation {std}."
        )
    return tuple(settings.get("image_mean", mean)), tuple(settings.get("image_std", std))


__all__ = ["LAYOUTS", "from_state_dict", "read_timm", "read_vit"]
