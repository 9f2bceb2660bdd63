"""Checkpoints of the authors' released code as ViP2ClipForAnomalyDetection.

A released `.pth` file is `{"prompt_learner": state_dict, "Zero_try": state_dict}`: prompts and image-conditioned
adapter, and fine-grained perception (its projections as Conv1d of kernel size 1).
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CLIPModel
from transformers.utils import logging

from .backbone_vip2clip import HUB_KWARGS, load_clip
from .configuration_vip2clip import CLIP_VOCAB_SIZE, STATE_WORD_TOKEN_IDS, ViP2ClipConfig
from .modeling_vip2clip import ViP2ClipForAnomalyDetection


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
# Embeddings of the fixed tokens, from which the ids are recovered: start, state word, end and padding.
TOKEN_BUFFERS = {
    kind: tuple(f"prompt_learner.token_{part}_{suffix}" for part in ("prefix", "middle", "suffix"))
    for kind, suffix in (("normal", "pos"), ("anomalous", "neg"))
}
# Settings that follow from the shapes of the tensors.
GIVEN_BY_THE_FILE = (
    "variant",
    "clip_config",
    "num_context_tokens",
    "num_image_tokens",
    "meta_net_hidden_size",
    "use_image_conditioning",
    "use_fine_grained_perception",
)


def meta_net_keys(index: int) -> dict[str, str]:
    """Keys of the Meta-Net of one image token: Linear, ReLU, Linear."""
    return {
        f"prompt_learner.cls_prompter.fc.{index}.{layer}.{name}": (
            f"image_conditioned_adapter.meta_nets.{index}.{layer}.{name}"
        )
        for layer in (0, 2)
        for name in ("weight", "bias")
    }


def load_release_checkpoint(checkpoint: str | os.PathLike | Mapping) -> dict[str, torch.Tensor]:
    """
    The tensors of a released checkpoint under flat keys (`prompt_learner.ctx_pos`, `Zero_try.q_proj_pre.weight`).

    Raises:
        OSError: the file is missing or damaged.
        ValueError: it is no released ViP²-CLIP checkpoint.
    """
    if not isinstance(checkpoint, Mapping):
        path = Path(checkpoint)
        if not path.is_file():
            raise OSError(f"Checkpoint {str(path)!r} not found; expected a .pth file of the released code.")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises pickle, zip and runtime errors, depending on where the file breaks
            raise OSError(
                f"Checkpoint {str(path)!r} could not be read as tensors ({type(error).__name__}); expected a .pth "
                "file of the released code, whole and without other objects in it."
            ) from error
        checkpoint = content
    parts = ("prompt_learner", "Zero_try")
    if not isinstance(checkpoint, Mapping) or not all(isinstance(checkpoint.get(part), Mapping) for part in parts):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"Expected a checkpoint with the entries {' and '.join(parts)}, found {found}.")
    return {f"{part}.{name}": tensor for part in parts for name, tensor in checkpoint[part].items()}


def find_token_ids(rows: torch.Tensor, table: torch.Tensor, what: str) -> tuple[int, ...]:
    """
    Ids of the rows of CLIP's token table that stored embeddings were taken from.

    Args:
        rows (`torch.Tensor` of shape `(num_tokens, width)`): stored embeddings.
        table (`torch.Tensor` of shape `(vocab_size, width)`): token embeddings of the backbone.
        what (`str`): what the rows are, for the message.

    Raises:
        ValueError: a row that is not in the table, as happens with another backbone.
    """
    if rows.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"The checkpoint's {what} has width {rows.shape[-1]}, the text tower of the backbone {table.shape[-1]}: "
            "it was trained on another backbone (the authors used CLIP ViT-L/14@336px)."
        )
    # A stored embedding and its row come from the same weights; only half precision in between is forgiven.
    tolerance = max(torch.finfo(rows.dtype).eps, torch.finfo(table.dtype).eps, 1e-6)
    distances = torch.cdist(rows.double(), table.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest, ids = distances.min(dim=1)
    if not (nearest <= tolerance * rows.double().norm(dim=1)).all():
        raise ValueError(
            f"The checkpoint's {what} is no row of the backbone's token table (nearest differs by "
            f"{nearest.max().item():.3g}): it was trained on another backbone (the authors used CLIP "
            "ViT-L/14@336px)."
        )
    return tuple(ids.tolist())


def convert_release_checkpoint(
    checkpoint: str | os.PathLike | Mapping,
    clip: CLIPModel | str | os.PathLike,
    **config_overrides,
) -> ViP2ClipForAnomalyDetection:
    """
    A released checkpoint on its backbone, in the release variant: what the authors' code computes.

    Prompt lengths and widths are read from the tensors; the ids of start, end and state word are found by looking the
    stored embeddings up in CLIP's token table (the released code stores "damaged" for both prompts, whatever its id
    buffers say). What the file does not hold are the settings of the authors' scripts: number of heads, feature
    layers, image size, top-k, sigma; they are the configuration's defaults and can be overridden.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`):
            `.pth` file, read with `torch.load(weights_only=True)`, or its content.
        clip (`CLIPModel`, `str` or `os.PathLike`):
            The backbone: a model, a folder or a Hub id. The authors used `openai/clip-vit-large-patch14-336`.
        config_overrides:
            Fields of [`ViP2ClipConfig`] that the file does not decide, and `dtype`, `attn_implementation`,
            `device_map`, `revision`, ... of [`ViP2ClipForAnomalyDetection.from_clip`].

    Returns:
        [`ViP2ClipForAnomalyDetection`]: in eval mode.

    Raises:
        OSError: a file that is missing or damaged.
        ValueError: no released checkpoint, another backbone, or a setting that cannot be chosen.
    """
    given = [name for name in config_overrides if name in GIVEN_BY_THE_FILE]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be chosen: the released checkpoint decides.")
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
            f"{'lacks' if missing else 'also holds'} {', '.join(missing or surplus)}; expected one Meta-Net for each."
        )
    broken = [key for key in key_table if not torch.isfinite(tensors[key]).all()]
    if broken:
        raise ValueError(f"The checkpoint has values that are not finite in {', '.join(broken)}.")

    # The shapes come first: on another backbone the model cannot even be built.
    hub_kwargs = {name: config_overrides.pop(name) for name in HUB_KWARGS if name in config_overrides}
    clip, origin = load_clip(clip, **hub_kwargs)
    embed_dim = tensors["prompt_learner.cls_prompter.bias"].shape[-1]
    if embed_dim != clip.config.projection_dim:
        raise ValueError(
            f"The checkpoint works in a joint space of {embed_dim} dimensions, the backbone in one of "
            f"{clip.config.projection_dim}: it was trained on another backbone (the authors used CLIP ViT-L/14@336px)."
        )
    settings = {
        **origin,
        **_token_settings(tensors, clip.text_model.embeddings.token_embedding.weight),
        "num_context_tokens": len(tensors["prompt_learner.ctx_pos"]),
        "num_image_tokens": num_image_tokens,
        "meta_net_hidden_size": len(tensors["prompt_learner.cls_prompter.fc.0.0.weight"]),
        **config_overrides,
    }
    model = ViP2ClipForAnomalyDetection.from_clip(clip, variant="release", **settings)

    targets = model.adapter_state_dict()
    # Same numbers, other shapes: (1, D) to (D,), and Conv1d (out, in, 1) to Linear (out, in).
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
        logger.warning(f"Entries of the checkpoint that are not needed: {', '.join(unused)}")
    return model


def _token_settings(tensors: dict[str, torch.Tensor], table: torch.Tensor) -> dict:
    """Token ids, and words where known, of the fixed tokens of both prompts."""
    settings = {}
    words = {ids: word for word, ids in STATE_WORD_TOKEN_IDS.items()} if len(table) == CLIP_VOCAB_SIZE else {}
    for kind, (prefix, middle, suffix) in TOKEN_BUFFERS.items():
        ids = find_token_ids(tensors[middle][0], table, f"{kind} state word")
        settings[f"{kind}_token_ids"] = ids
        settings[f"{kind}_word"] = words.get(ids)
        settings["bos_token_id"] = find_token_ids(tensors[prefix][0], table, "start token")[0]
        settings["eos_token_id"] = find_token_ids(tensors[suffix][0, :1], table, "end token")[0]
    return settings


__all__ = ["convert_release_checkpoint"]
