"""
Convert checkpoints of AnomalyCLIP's published code to [`AnomalyClipForAnomalyDetection`].

A `.pth` file contains `{"prompt_learner": state_dict}`: the learned vectors, embeddings of the fixed words, which
the backbone also contains, token ids, and projections that the published code never uses.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPModel
from transformers.utils import logging

from ..models.vip2clip.backbone_vip2clip import HUB_KWARGS, load_clip
from ..models.vip2clip.convert_vip2clip_to_hf import find_token_ids
from ..models.vip2clip.provenance_vip2clip import Provenance
from ..models.vip2clip.training_record_vip2clip import remember_weights
from .anomalyclip import AnomalyClipForAnomalyDetection
from .anomalyclip_configuration import KINDS, AnomalyClipConfig
from .released import read_released
from .tokenizing import find_tokenizer


logger = logging.get_logger(__name__)
CODE = "AnomalyCLIP's code"
SUFFIXES = dict(zip(KINDS, ("pos", "neg")))
DEEP_PROMPT = re.compile(r"compound_prompts_text\.(\d+)")
# Never used by the published code, and without gradient in its training.
UNUSED = re.compile(r"compound_prompt_projections\.\d+\.(weight|bias)")
# Settings determined by the checkpoint.
FIXED_SETTINGS = (
    "clip_config", "num_context_tokens", "prompt_depth", "deep_prompt_length", "normal_token_ids",
    "anomalous_token_ids", "bos_token_id", "eos_token_id",
)  # fmt: skip
FROM_CLIP_ARGUMENTS = ("attn_implementation", "device_map", "dtype", *HUB_KWARGS)
_OTHER_BACKBONE = "The checkpoint was trained on another backbone (the authors used CLIP ViT-L/14@336px)."


def convert_anomalyclip_checkpoint(
    checkpoint: str | os.PathLike | Mapping,
    clip: CLIPModel | str | os.PathLike,
    tokenizer: Any = None,
    **config_overrides: Any,
) -> AnomalyClipForAnomalyDetection:
    """
    Convert a checkpoint of AnomalyCLIP's published code.

    Lengths and depth of the prompts are read from the tensors. The stored embeddings of the fixed words must be those
    of the backbone. Their ids must be those of `normal_text` and `anomalous_text`.

    The file does not contain the settings of the authors' scripts: image size, feature layers, layers with value-value
    attention and smoothing. The defaults of the configuration are the same and can be overridden.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`):
            `.pth` file, read with `torch.load(weights_only=True)`, or its content. Its keys may have the prefix
            `module.` of `torch.nn.DataParallel`.
        clip (`CLIPModel`, `str` or `os.PathLike`):
            Backbone: a model, a folder or a Hub id. The authors used `openai/clip-vit-large-patch14-336`.
        tokenizer (tokenizer, `str` or `os.PathLike`, *optional*):
            Text tokenizer, or its folder or Hub id. By default, that of the folder or Hub id in `clip`.
        config_overrides:
            Fields of [`AnomalyClipConfig`] that the file does not contain, such as `image_size` and `feature_layers`,
            and arguments of [`AnomalyClipForAnomalyDetection.from_clip`] such as `dtype` and `revision`.

    Returns:
        [`AnomalyClipForAnomalyDetection`]: the model, in eval mode.

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: if the file is not a checkpoint of AnomalyCLIP or was trained on another backbone, the backbone has
            no text tokenizer, or a setting cannot be overridden, because the file determines it.
    """
    fixed = [name for name in config_overrides if name in FIXED_SETTINGS]
    if fixed:
        raise ValueError(f"{', '.join(fixed)} cannot be overridden, because the checkpoint determines it.")
    AnomalyClipConfig.check_names(name for name in config_overrides if name not in FROM_CLIP_ARGUMENTS)
    tensors = read_anomalyclip_checkpoint(checkpoint)
    deep = sorted((key for key in tensors if DEEP_PROMPT.fullmatch(key)), key=lambda key: int(key.rpartition(".")[2]))

    # Check the width first: with another backbone, the model cannot be built.
    hub_kwargs = {name: value for name, value in config_overrides.items() if name in HUB_KWARGS}
    backbone: Any
    backbone, origin = load_clip(clip, **hub_kwargs)
    _check_shapes(tensors, deep, backbone.config.text_config.hidden_size)
    if tokenizer is None and isinstance(clip, (str, os.PathLike)):
        tokenizer = find_tokenizer(clip, **hub_kwargs)
    model = AnomalyClipForAnomalyDetection.from_clip(
        backbone,
        tokenizer,
        num_context_tokens=tensors["ctx_pos"].shape[2],
        prompt_depth=len(deep) + 1,
        deep_prompt_length=len(tensors[deep[0]]) if deep else 1,  # without effect if there are none
        **{name: value for name, value in config_overrides.items() if name not in HUB_KWARGS},
    )
    for kind in KINDS:
        _check_words(tensors, kind, model)
    adapters = {f"prompt_learner.{kind}_context": tensors[f"ctx_{SUFFIXES[kind]}"][0, 0] for kind in KINDS}
    adapters.update({f"prompt_learner.deep_prompts.{number}": tensors[key] for number, key in enumerate(deep)})
    model.load_state_dict(adapters, strict=False)
    unused = [key for key in tensors if UNUSED.fullmatch(key)]
    if unused:
        logger.info(f"Dropped {len(unused)} entries of the checkpoint that {CODE} never uses: {', '.join(unused)}")
    model.provenance = Provenance.from_dict(origin)
    model.provenance.training_recorded = False  # the file does not contain the training data
    remember_weights(model)
    return model


def read_anomalyclip_checkpoint(checkpoint: str | os.PathLike | Mapping) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a checkpoint, and check their names and values.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`): `.pth` file, or its content.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by their names in the published code.

    Raises:
        OSError: if the file is missing or damaged.
        ValueError: if it is not a checkpoint of AnomalyCLIP, or a value is not finite.
    """
    content = read_released(checkpoint, CODE)
    tensors = content.get("prompt_learner")
    if not isinstance(tensors, dict):
        raise ValueError(f"The checkpoint has the entries {sorted(content)}; expected prompt_learner, as in {CODE}.")
    indices = sorted(int(found[1]) for found in map(DEEP_PROMPT.fullmatch, tensors) if found)
    needed = {
        f"{name}_{suffix}": dims
        for suffix in SUFFIXES.values()
        for name, dims in (("ctx", 4), ("token_prefix", 4), ("token_suffix", 4), ("tokenized_prompts", 3))
    }
    needed.update({f"compound_prompts_text.{index}": 2 for index in range(len(indices))})
    missing = [key for key in needed if key not in tensors]
    surplus = [key for key in tensors if key not in needed and not UNUSED.fullmatch(key)]
    if missing or surplus:
        raise ValueError(
            f"The checkpoint {'lacks' if missing else 'also contains'} {', '.join(missing or surplus)}; expected the "
            f"entries of {CODE}."
        )
    for key, dims in needed.items():
        entry, is_ids = tensors[key], key.startswith("tokenized")
        if not isinstance(entry, torch.Tensor):
            raise ValueError(f"{key} is of type {type(entry).__name__}; expected a tensor.")
        wrong = entry.is_floating_point() == is_ids or entry.is_complex() or entry.dtype == torch.bool
        if wrong or entry.dim() != dims or entry.layout != torch.strided or 0 in entry.shape:
            raise ValueError(
                f"{key} is a {entry.dtype} tensor of shape {tuple(entry.shape)} and layout {entry.layout}; expected a "
                f"dense {'integer' if is_ids else 'floating-point'} tensor with {dims} dimensions."
            )
    broken = [key for key in needed if not torch.isfinite(tensors[key]).all()]
    if broken:
        raise ValueError(
            f"The checkpoint contains NaN or infinite values in {', '.join(broken)}; expected finite ones."
        )
    return tensors


def _check_shapes(tensors: Mapping[str, torch.Tensor], deep: list[str], width: int) -> None:
    """Check that all tensors belong to prompts of the same lengths, and to a text tower of this width."""
    found = tensors["ctx_pos"].shape[3]
    if found != width:
        raise ValueError(
            f"The checkpoint has prompts of width {found}; expected {width}, as the text tower of the backbone. "
            f"{_OTHER_BACKBONE}"
        )
    count, total = tensors["ctx_pos"].shape[2], tensors["tokenized_prompts_pos"].shape[2]
    expected: dict[str, tuple[int, ...]] = {}
    for suffix in SUFFIXES.values():
        expected[f"ctx_{suffix}"] = (1, 1, count, width)
        expected[f"token_prefix_{suffix}"] = (1, 1, 1, width)
        expected[f"token_suffix_{suffix}"] = (1, 1, max(total - 1 - count, 0), width)
        expected[f"tokenized_prompts_{suffix}"] = (1, 1, total)
    expected.update({key: (len(tensors[deep[0]]), width) for key in deep})
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}; expected {shape}, as the other entries.")


def _check_words(tensors: Mapping[str, torch.Tensor], kind: str, model: AnomalyClipForAnomalyDetection) -> None:
    """Check that the fixed words of a prompt are those of the configuration, embedded by the backbone."""
    config, suffix = model.config, SUFFIXES[kind]
    table = model.clip.text_model.embeddings.token_embedding.weight.detach().cpu()
    ids = tensors[f"tokenized_prompts_{suffix}"].flatten().long()
    count = config.num_context_tokens
    words = int(ids.argmax()) - count  # with the end token, which has the largest id
    if words < 2:
        raise ValueError(
            f"tokenized_prompts_{suffix} has {words + count} tokens before the end token; expected more than "
            f"the start token and {count} learned vectors."
        )
    rows = torch.cat([tensors[f"token_prefix_{suffix}"][0, 0], tensors[f"token_suffix_{suffix}"][0, 0, :words]])
    found, expected = find_token_ids(rows, table, f"{kind} prompt"), config.ids_of(kind)
    # The ids in the file are those of CLIP's vocabulary, which a small text tower may not have.
    stored = tuple(torch.cat([ids[:1], ids[1 + count : 1 + count + words]]).tolist())
    for what, row in (("embeddings", found), ("ids", stored if int(ids.max()) < len(table) else expected)):
        if row != expected:
            raise ValueError(
                f"The {what} of the fixed tokens in the {kind} prompt of the checkpoint are those of the ids {row}; "
                f"expected {expected}, those of {kind}_text {getattr(config, f'{kind}_text')!r}. If it was trained "
                f"with other words, set {kind}_text."
            )


__all__ = ["convert_anomalyclip_checkpoint", "read_anomalyclip_checkpoint"]
