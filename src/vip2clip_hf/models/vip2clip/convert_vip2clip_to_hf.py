"""Convert checkpoints of the authors' released code to ViP2ClipForAnomalyDetection.

A released `.pth` file contains `{"prompt_learner": state_dict, "Zero_try": state_dict}`: the prompts with the
image-conditioned adapter, and the fine-grained perception. The latter has Conv1d projections of kernel size 1.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel
from transformers.utils import logging

from .backbone_vip2clip import HUB_KWARGS, load_clip
from .configuration_vip2clip import ViP2ClipConfig
from .modeling_vip2clip import ViP2ClipForAnomalyDetection
from .state_words_vip2clip import known_token_ids


logger = logging.get_logger(__name__)
FROM_CLIP_ARGUMENTS = ("attn_implementation", "device_map", "dtype", *HUB_KWARGS)
KEY_TABLE = {
    "prompt_learner.ctx_pos": "prompt_learner.normal_context",
    "prompt_learner.ctx_neg": "prompt_learner.anomalous_context",
    "prompt_learner.cls_ctx": "prompt_learner.image_tokens",
    "prompt_learner.cls_prompter.bias": "image_conditioned_adapter.input_bias",
    "Zero_try.q_proj_pre.weight": "fine_grained_perception.q_proj.weight",
    "Zero_try.q_proj_pre.bias": "fine_grained_perception.q_proj.bias",
    "Zero_try.k_proj_pre_1.weight": "fine_grained_perception.k_proj.weight",
    "Zero_try.k_proj_pre_1.bias": "fine_grained_perception.k_proj.bias",
    "Zero_try.v_proj_pre_1.weight": "fine_grained_perception.v_proj.weight",
    "Zero_try.v_proj_pre_1.bias": "fine_grained_perception.v_proj.bias",
    "Zero_try.proj_post_t.weight": "fine_grained_perception.out_proj.weight",
    "Zero_try.proj_post_t.bias": "fine_grained_perception.out_proj.bias",
}
# Embeddings of the fixed tokens: start, state word, end with padding. The token ids are recovered from them.
TOKEN_BUFFERS = {
    kind: tuple(f"prompt_learner.token_{part}_{suffix}" for part in ("prefix", "middle", "suffix"))
    for kind, suffix in (("normal", "pos"), ("anomalous", "neg"))
}
# Settings determined by the checkpoint.
FIXED_SETTINGS = (
    "variant",
    "clip_config",
    "num_context_tokens",
    "num_image_tokens",
    "meta_net_hidden_size",
    "use_image_conditioning",
    "use_fine_grained_perception",
)


def meta_net_keys(index: int) -> dict[str, str]:
    """
    Return the keys of a Meta-Net (Linear, ReLU, Linear).

    Args:
        index (`int`): index of the image token.

    Returns:
        `dict[str, str]`: names of the model's parameters by keys of the released checkpoint.
    """
    return {
        f"prompt_learner.cls_prompter.fc.{index}.{layer}.{name}": (
            f"image_conditioned_adapter.meta_nets.{index}.{layer}.{name}"
        )
        for layer in (0, 2)
        for name in ("weight", "bias")
    }


def load_release_checkpoint(checkpoint: str | os.PathLike | Mapping) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a released checkpoint.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`): `.pth` file, or its content.

    Returns:
        `dict[str, torch.Tensor]`: tensors by flat keys such as `prompt_learner.ctx_pos` and
        `Zero_try.q_proj_pre.weight`.

    Raises:
        OSError: if the file is missing or damaged.
        ValueError: if it is not a released ViP²-CLIP checkpoint.
    """
    if not isinstance(checkpoint, Mapping):
        path = Path(checkpoint)
        if not path.is_file():
            raise OSError(f"Checkpoint {str(path)!r} not found; expected a .pth file of the released code.")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip or runtime error, depending on the damage
            raise OSError(
                f"Checkpoint {str(path)!r} could not be read as tensors ({type(error).__name__}); expected a complete "
                ".pth file of the released code, which contains only tensors."
            ) from error
        checkpoint = content
    parts = ("prompt_learner", "Zero_try")
    if not isinstance(checkpoint, Mapping) or not all(isinstance(checkpoint.get(part), Mapping) for part in parts):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"Expected a checkpoint with the entries {' and '.join(parts)}, found {found}.")
    return {f"{part}.{name}": tensor for part in parts for name, tensor in checkpoint[part].items()}


def find_token_ids(rows: torch.Tensor, table: torch.Tensor, what: str) -> tuple[int, ...]:
    """
    Find the token ids of stored embeddings in CLIP's token embeddings.

    Args:
        rows (`torch.Tensor` of shape `(num_tokens, width)`): stored embeddings.
        table (`torch.Tensor` of shape `(vocab_size, width)`): token embeddings of the backbone.
        what (`str`): description of the rows, for the message.

    Returns:
        `tuple[int, ...]`: one id per row.

    Raises:
        ValueError: if a row is not in the table, which happens with another backbone.
    """
    if rows.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"The {what} of the checkpoint has width {rows.shape[-1]}; expected {table.shape[-1]}, the width of the "
            "backbone's text tower. The checkpoint was trained on another backbone (the authors used CLIP "
            "ViT-L/14@336px)."
        )
    # Stored embeddings are copies of rows. Allow only the error of a conversion to half precision.
    tolerance = max(torch.finfo(rows.dtype).eps, torch.finfo(table.dtype).eps, 1e-6)
    distances = torch.cdist(rows.double(), table.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest, ids = distances.min(dim=1)
    if not (nearest <= tolerance * rows.double().norm(dim=1)).all():
        raise ValueError(
            f"The {what} of the checkpoint is not in the token embeddings of the backbone (distance to the nearest: "
            f"{nearest.max().item():.3g}). The checkpoint was trained on another backbone (the authors used CLIP "
            "ViT-L/14@336px)."
        )
    return tuple(ids.tolist())


def convert_release_checkpoint(
    checkpoint: str | os.PathLike | Mapping,
    clip: CLIPModel | str | os.PathLike,
    **config_overrides: Any,
) -> ViP2ClipForAnomalyDetection:
    """
    Convert a checkpoint of the authors' released code.

    The result is a model in the `"release"` variant, with the same outputs as the authors' code. Sizes and prompt
    lengths are read from the tensors. The ids of start token, end token and state words are found by comparing the
    stored embeddings with CLIP's token embeddings. The id buffers are not used: they contain "good" for the normal
    prompt, although the released code embeds "damaged" in both prompts.

    The file does not contain the settings of the authors' scripts: number of heads, feature layers, image size, top-k
    and sigma. The defaults of the configuration are the same and can be overridden.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`):
            `.pth` file, read with `torch.load(weights_only=True)`, or its content.
        clip (`CLIPModel`, `str` or `os.PathLike`):
            Backbone: a model, a folder or a Hub id. The authors used `openai/clip-vit-large-patch14-336`.
        config_overrides:
            Fields of [`ViP2ClipConfig`] that are not determined by the file, and arguments of
            [`ViP2ClipForAnomalyDetection.from_clip`] such as `dtype`, `attn_implementation`, `device_map` and
            `revision`.

    Returns:
        [`ViP2ClipForAnomalyDetection`]: the model, in eval mode.

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: if the file is not a released checkpoint, was trained on another backbone, or determines a setting
            that is overridden.
    """
    fixed = [name for name in config_overrides if name in FIXED_SETTINGS]
    if fixed:
        raise ValueError(f"{', '.join(fixed)} cannot be overridden, because the checkpoint determines it.")
    ViP2ClipConfig.check_names(name for name in config_overrides if name not in FROM_CLIP_ARGUMENTS)
    tensors = load_release_checkpoint(checkpoint)
    missing = [key for key in KEY_TABLE if key not in tensors]
    missing += [key for keys in TOKEN_BUFFERS.values() for key in keys if key not in tensors]
    if missing:
        raise ValueError(f"The checkpoint lacks {', '.join(missing)}; expected a file of the released code.")
    num_image_tokens = len(tensors["prompt_learner.cls_ctx"])
    key_table = dict(KEY_TABLE)
    for index in range(num_image_tokens):
        key_table.update(meta_net_keys(index))
    missing = [key for key in key_table if key not in tensors]
    surplus = [key for key in meta_net_keys(num_image_tokens) if key in tensors]
    if missing or surplus:
        raise ValueError(
            f"The checkpoint has {num_image_tokens} image tokens but "
            f"{'lacks' if missing else 'also contains'} {', '.join(missing or surplus)}; expected one Meta-Net per "
            "image token."
        )
    broken = [key for key in key_table if not torch.isfinite(tensors[key]).all()]
    if broken:
        raise ValueError(
            f"The checkpoint contains NaN or infinite values in {', '.join(broken)}; expected finite ones."
        )

    # Check the width first: with another backbone, the model cannot be built.
    hub_kwargs = {name: config_overrides.pop(name) for name in HUB_KWARGS if name in config_overrides}
    backbone, origin = load_clip(clip, **hub_kwargs)
    embed_dim = tensors["prompt_learner.cls_prompter.bias"].shape[-1]
    if embed_dim != backbone.config.projection_dim:
        raise ValueError(
            f"The checkpoint has a joint space of {embed_dim} dimensions; expected {backbone.config.projection_dim}, "
            "as in the backbone. The checkpoint was trained on another backbone (the authors used CLIP "
            "ViT-L/14@336px)."
        )
    settings = {
        **origin,
        **_token_settings(tensors, backbone.text_model.embeddings.token_embedding.weight),
        "num_context_tokens": len(tensors["prompt_learner.ctx_pos"]),
        "num_image_tokens": num_image_tokens,
        "meta_net_hidden_size": len(tensors["prompt_learner.cls_prompter.fc.0.0.weight"]),
        **config_overrides,
    }
    model = ViP2ClipForAnomalyDetection.from_clip(backbone, variant="release", **settings)

    targets = model.adapter_state_dict()
    # Only shapes differ: (1, D) becomes (D,), and Conv1d weights (out, in, 1) become Linear weights (out, in).
    axes = {"prompt_learner.cls_prompter.bias": 0}
    adapters = {
        new: tensors[old].squeeze(axes.get(old, -1 if old.startswith("Zero_try.") and "weight" in old else ()))
        for old, new in key_table.items()
    }
    for name, tensor in adapters.items():
        if tensor.shape != targets[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(targets[name].shape)}.")
    model.load_state_dict(adapters, strict=False)
    unused = sorted(set(tensors) - set(key_table) - {key for keys in TOKEN_BUFFERS.values() for key in keys})
    if unused:
        logger.warning(f"Unused entries of the checkpoint: {', '.join(unused)}")
    return model


def _token_settings(tensors: dict[str, torch.Tensor], table: torch.Tensor) -> dict[str, Any]:
    """Return the token ids of the fixed tokens in both prompts, and the state words if known."""
    settings: dict[str, Any] = {}
    words = {ids: word for word, ids in known_token_ids(len(table)).items()}
    for kind, (prefix, middle, suffix) in TOKEN_BUFFERS.items():
        ids = find_token_ids(tensors[middle][0], table, f"{kind} state word")
        settings[f"{kind}_token_ids"] = ids
        settings[f"{kind}_word"] = words.get(ids)
        settings["bos_token_id"] = find_token_ids(tensors[prefix][0], table, "start token")[0]
        settings["eos_token_id"] = find_token_ids(tensors[suffix][0, :1], table, "end token")[0]
    return settings


__all__ = ["convert_release_checkpoint"]
