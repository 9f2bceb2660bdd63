"""Convert checkpoints of the authors' released code to ViP2ClipForAnomalyDetection.

A released `.pth` file contains `{"prompt_learner": state_dict, "Zero_try": state_dict}`: the prompts with the
image-conditioned adapter, and the fine-grained perception. The latter has Conv1d projections of kernel size 1.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..released_files import read_tensors
from .backbone_vip2clip import HUB_KWARGS, load_clip
from .configuration_tables_vip2clip import MOVED_FIELDS
from .configuration_vip2clip import ViP2ClipConfig
from .modeling_vip2clip import ViP2ClipForAnomalyDetection
from .state_words_vip2clip import known_token_ids
from .training_record_vip2clip import remember_weights


logger = logging.get_logger(__name__)
FROM_CLIP_ARGUMENTS = ("attn_implementation", "device_map", "dtype", *HUB_KWARGS)
KEY_TABLE = {
    "prompt_learner.ctx_pos": "prompt_learner.normal_context",
    "prompt_learner.ctx_neg": "prompt_learner.anomalous_context",
    "prompt_learner.cls_ctx": "prompt_learner.object_tokens",
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
# Embeddings of the fixed tokens in both prompts: start, state word, end with padding.
TOKEN_BUFFERS = {
    kind: tuple(f"prompt_learner.token_{part}_{suffix}" for part in ("prefix", "middle", "suffix"))
    for kind, suffix in (("normal", "pos"), ("anomalous", "neg"))
}
# Token ids of both prompts. They contain "good" for the normal prompt, although the released code embeds "damaged" in
# both. Only the ids of start and end token are read.
TOKEN_IDS = ("prompt_learner.tokenized_prompts_pos", "prompt_learner.tokenized_prompts_neg")
# In every file of the released code, but not used by it.
UNUSED = ("Zero_try.prompt_temp_l1", *TOKEN_IDS)
# Settings determined by the checkpoint.
FIXED_SETTINGS = (
    "variant",
    "clip_config",
    "num_context_tokens",
    "num_object_tokens",
    "normal_word",
    "anomalous_word",
    "normal_token_ids",
    "anomalous_token_ids",
    "bos_token_id",
    "eos_token_id",
    "meta_net_hidden_size",
    "use_image_conditioning",
    "use_fine_grained_perception",
)
# Settings of the authors' scripts, which the checkpoint does not contain.
FREE_SETTINGS = (
    "image_size",
    "feature_layers",
    "fgp_num_heads",
    "fgp_scaled",
    "top_k",
    "temperature",
    "smoothing_sigma",
    "image_score",
    "image_embeds_layernorm",
    "position_interpolation",
    "alignment",
    "local_loss_weight",
    "focal_gamma",
    "focal_smooth",
)
_OTHER_BACKBONE = "The checkpoint was trained on another backbone (the authors used CLIP ViT-L/14@336px)."


def meta_net_keys(index: int) -> dict[str, str]:
    """
    Return the keys of a Meta-Net (Linear, ReLU, Linear).

    Args:
        index (`int`): index of the object token.

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


def check_settings(names: Iterable[str]) -> None:
    """
    Check that settings can be overridden in a conversion.

    Args:
        names (`Iterable[str]`): names of the settings.

    Raises:
        ValueError: if a setting is determined by the checkpoint, or is not a field of [`ViP2ClipConfig`] that changes
            the architecture, the maps, the scores or the loss.
    """
    names = [name for name in names if name not in FROM_CLIP_ARGUMENTS]
    fixed = [name for name in names if name in FIXED_SETTINGS]
    if fixed:
        raise ValueError(f"{', '.join(fixed)} cannot be overridden, because the checkpoint determines it.")
    ViP2ClipConfig.check_names(name for name in names if name not in MOVED_FIELDS)
    other = [name for name in names if name not in FREE_SETTINGS]
    if other:
        raise ValueError(f"{', '.join(other)} cannot be set in a conversion; expected {', '.join(FREE_SETTINGS)}.")


def load_release_checkpoint(checkpoint: str | os.PathLike | Mapping) -> dict[str, Any]:
    """
    Read the tensors of a released checkpoint.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`): `.pth` file, or its content. Keys may have the prefix
            `module.` of `torch.nn.DataParallel`.

    Returns:
        `dict[str, Any]`: the entries, usually tensors, by flat keys such as `prompt_learner.ctx_pos` and
        `Zero_try.q_proj_pre.weight`.

    Raises:
        OSError: if the file is missing or damaged.
        ValueError: if it is not a released ViP²-CLIP checkpoint.
    """
    checkpoint = read_tensors(checkpoint, "the released code")
    parts = ("prompt_learner", "Zero_try")
    if not isinstance(checkpoint, Mapping) or not all(isinstance(checkpoint.get(part), Mapping) for part in parts):
        found = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"Expected a checkpoint with the entries {' and '.join(parts)}, found {found}.")
    entries = {}
    for part in parts:
        content = {str(name): entry for name, entry in checkpoint[part].items()}
        if all(name.startswith("module.") for name in content):
            content = {name.removeprefix("module."): entry for name, entry in content.items()}
        entries.update({f"{part}.{name}": entry for name, entry in content.items()})
    return entries


def check_tensor(key: str, entry: object) -> None:
    """
    Check type, dtype and number of dimensions of an entry.

    Args:
        key (`str`): flat key of the entry, see [`load_release_checkpoint`].
        entry (`object`): the entry.

    Raises:
        ValueError: if it is not a dense floating-point tensor with the number of dimensions in the released code.
    """
    if not isinstance(entry, torch.Tensor):
        raise ValueError(f"{key} is of type {type(entry).__name__}; expected a tensor.")
    if ".token_" in key or (key.startswith("Zero_try.") and key.endswith(".weight")):
        dims = 3
    else:
        dims = 1 if key.endswith(".bias") and key != "prompt_learner.cls_prompter.bias" else 2
    if entry.dim() != dims or not entry.is_floating_point() or entry.layout != torch.strided or 0 in entry.shape:
        raise ValueError(
            f"{key} is a {entry.dtype} tensor of shape {tuple(entry.shape)} and layout {entry.layout}; expected a "
            f"dense floating-point tensor with {dims} dimensions."
        )


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
    distances = torch.cdist(rows.double(), table.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest, ids = distances.min(dim=1)
    if not (nearest <= _tolerance(rows, table)).all():
        raise ValueError(
            f"The {what} of the checkpoint is not in the token embeddings of the backbone (distance to the nearest: "
            f"{nearest.max().item():.3g}). {_OTHER_BACKBONE}"
        )
    return tuple(ids.tolist())


def _tolerance(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the largest distance between stored embeddings and rows of the table that they are copies of: only the
    error of a conversion to half precision. Shape `(num_tokens,)`, float64."""
    return max(torch.finfo(rows.dtype).eps, torch.finfo(table.dtype).eps, 1e-6) * rows.double().norm(dim=1)


def convert_release_checkpoint(
    checkpoint: str | os.PathLike | Mapping,
    clip: PreTrainedModel | str | os.PathLike,
    **config_overrides: Any,
) -> ViP2ClipForAnomalyDetection:
    """
    Convert a checkpoint of the authors' released code.

    The result is a model in the `"release"` variant, with the same outputs as the authors' code. Sizes and prompt
    lengths are read from the tensors. The ids of the state words are found by comparing the stored embeddings with
    CLIP's token embeddings, because the stored ids contain "good" for the normal prompt, although the released code
    embeds "damaged" in both prompts. The stored embeddings of start and end token must be those of the backbone.

    The file does not contain the settings of the authors' scripts: number of heads, feature layers, image size, top-k
    and sigma. The defaults of the configuration are the same and can be overridden.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`):
            `.pth` file, read with `torch.load(weights_only=True)`, or its content. Its keys may have the prefix
            `module.` of `torch.nn.DataParallel`.
        clip (`CLIPModel`, [`ViP2ClipForAnomalyDetection`], `str` or `os.PathLike`):
            Backbone: a model, a folder or a Hub id. The weights of a model are shared, not copied, if they have the
            same dtype and device. The authors used `openai/clip-vit-large-patch14-336`.
        config_overrides:
            Fields of [`ViP2ClipConfig`] that the file does not contain, such as `image_size`, `feature_layers`,
            `fgp_num_heads`, `top_k` and `smoothing_sigma`, and arguments of
            [`ViP2ClipForAnomalyDetection.from_clip`] such as `dtype`, `attn_implementation`, `device_map` and
            `revision`.

    Returns:
        [`ViP2ClipForAnomalyDetection`]: the model, in eval mode.

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: if the file is not a released checkpoint or was trained on another backbone, or if a setting cannot
            be overridden, because the file determines it or because it describes something else than the model, such
            as thresholds, training data or the files of a checkpoint.
    """
    check_settings(config_overrides)
    tensors = load_release_checkpoint(checkpoint)
    needed = [*KEY_TABLE, *(key for keys in TOKEN_BUFFERS.values() for key in keys)]
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise ValueError(f"The checkpoint lacks {', '.join(missing)}; expected a file of the released code.")
    for key in needed:
        check_tensor(key, tensors[key])
    num_object_tokens = len(tensors["prompt_learner.cls_ctx"])
    key_table = dict(KEY_TABLE)
    for index in range(num_object_tokens):
        key_table.update(meta_net_keys(index))
    missing = [key for key in key_table if key not in tensors]
    surplus = [key for key in meta_net_keys(num_object_tokens) if key in tensors]
    if missing or surplus:
        raise ValueError(
            f"The checkpoint has {num_object_tokens} object tokens but "
            f"{'lacks' if missing else 'also contains'} {', '.join(missing or surplus)}; expected one Meta-Net per "
            "object token."
        )
    for key in key_table:
        check_tensor(key, tensors[key])
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
            f"as in the backbone. {_OTHER_BACKBONE}"
        )
    settings = {
        **origin,
        **_token_settings(tensors, backbone.text_model.embeddings.token_embedding.weight),
        "num_context_tokens": len(tensors["prompt_learner.ctx_pos"]),
        "num_object_tokens": num_object_tokens,
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
    unused = sorted(set(tensors) - set(key_table) - set(needed) - set(UNUSED))
    if unused:
        logger.warning(f"Unused entries of the checkpoint: {', '.join(unused)}")
    model.provenance.training_recorded = False  # the file does not contain the training data
    remember_weights(model)
    return model


def _token_settings(tensors: dict[str, torch.Tensor], table: torch.Tensor) -> dict[str, Any]:
    """Return the token ids of the fixed tokens in both prompts, and the state words if known."""
    bos, eos = _start_and_end(tensors, len(table))
    settings: dict[str, Any] = {"bos_token_id": bos, "eos_token_id": eos}
    words = {ids: word for word, ids in known_token_ids(len(table)).items()}
    for kind, (prefix, middle, suffix) in TOKEN_BUFFERS.items():
        for key in (prefix, middle, suffix):
            expected = (1, 1 if key == prefix else tensors[key].shape[1], table.shape[-1])
            if tensors[key].shape != expected:
                raise ValueError(
                    f"{key} has shape {tuple(tensors[key].shape)}; expected {expected}, with the width of the "
                    f"backbone's text tower. {_OTHER_BACKBONE}"
                )
        for key, token, token_id in ((prefix, "start", bos), (suffix, "end", eos)):
            row = tensors[key][0, :1]
            distance = torch.linalg.vector_norm(row.double() - table[token_id].double(), dim=1)
            if not (distance <= _tolerance(row, table)).all():
                raise ValueError(
                    f"{key} differs by {distance.item():.3g} (L2 distance) from the embedding of the {token} token "
                    f"{token_id} in the backbone; expected a copy of it. {_OTHER_BACKBONE}"
                )
        ids = find_token_ids(tensors[middle][0], table, f"{kind} state word")
        settings[f"{kind}_token_ids"] = ids
        settings[f"{kind}_word"] = words.get(ids)
    return settings


def _start_and_end(tensors: dict[str, Any], vocab_size: int) -> tuple[int, int]:
    """Return the ids of start and end token: those in the checkpoint (the first and the largest id of each prompt), or
    the last two ids of the vocabulary, as in CLIP, if the checkpoint contains no ids."""
    found = {
        (int(ids.flatten()[0]), int(ids.max()))
        for ids in map(tensors.get, TOKEN_IDS)
        if isinstance(ids, torch.Tensor) and ids.numel()
    } or {(vocab_size - 2, vocab_size - 1)}
    bos, eos = sorted(found)[0]
    if len(found) > 1 or not (0 <= bos < vocab_size and 0 <= eos < vocab_size):
        raise ValueError(
            f"{' and '.join(TOKEN_IDS)} contain the ids {sorted(found)} of start and end token; expected the same ids "
            f"in both, between 0 and {vocab_size - 1}, from the vocabulary of the backbone. {_OTHER_BACKBONE}"
        )
    return bos, eos


__all__ = ["convert_release_checkpoint"]
