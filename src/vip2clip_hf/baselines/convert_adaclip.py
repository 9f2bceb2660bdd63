"""Convert checkpoints of AdaCLIP's published code to AdaClipForAnomalyDetection.

A published `.pth` file is a flat dict of tensors, with keys such as `clip_model.visual_prompter.static_prompts.0` and
`clip_model.patch_token_layer.head.0.weight`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel
from transformers.activations import ACT2FN

from ..models.vip2clip.backbone_vip2clip import HUB_KWARGS, load_clip
from ..models.vip2clip.provenance_vip2clip import Provenance
from ..models.vip2clip.training_record_vip2clip import remember_weights
from .adaclip import AdaClipForAnomalyDetection
from .adaclip_configuration import AdaClipConfig
from .released import read_released, with_activation
from .tokenizing import find_tokenizer


PREFIX = "clip_model."
_CODE = "the published code of AdaCLIP"
_OTHER_BACKBONE = "The checkpoint was trained on another backbone (the authors used CLIP ViT-L/14@336px)."
# Lists of tensors in the file, by their part of the key. Linear layers have two tensors for each number.
_STATIC = ("visual_prompter.static_prompts", "text_prompter.static_prompts")
_LINEAR = (
    "patch_token_layer.head", "cls_token_layer.head", "dynamic_visual_prompt_generator.head",
    "dynamic_text_prompt_generator.head",
)  # fmt: skip
_KEY = re.compile(rf"({'|'.join(map(re.escape, _STATIC))})\.(\d+)|({'|'.join(map(re.escape, _LINEAR))})\.(\d+)\.(\w+)")
_FROM_CLIP = ("attn_implementation", "device_map", "dtype", *HUB_KWARGS)


def convert_adaclip_checkpoint(
    checkpoint: str | os.PathLike | Mapping,
    clip: CLIPModel | str | os.PathLike,
    *,
    tokenizer: Any = None,
    hidden_act: str | None = "gelu",
    **config_overrides: Any,
) -> AdaClipForAnomalyDetection:
    """
    Convert a checkpoint of AdaCLIP's published code.

    The published code runs OpenAI's weights with the exact GELU, although they were trained with QuickGELU. Its
    adapters were trained with these features, so the activation of both towers is `"gelu"` by default.

    Sizes, length, depth, type and branches of the prompts are read from the tensors. The file does not contain the
    other settings of the authors' scripts, such as image size and number of clusters. The defaults of the
    configuration are those of the scripts and can be overridden. Without static prompts, the file determines neither
    branches nor depth of the prompts, so these can be overridden, too.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`):
            `.pth` file, read with `torch.load(weights_only=True)`, or its content. Its keys may have the prefix
            `module.` of `torch.nn.DataParallel`.
        clip (`CLIPModel`, `str` or `os.PathLike`):
            Backbone: a model, a folder or a Hub id. A model is not changed. Its weights are shared, not copied, if
            they have the same dtype and device. The authors used `openai/clip-vit-large-patch14-336`.
        tokenizer (tokenizer, `str` or `os.PathLike`, *optional*):
            Text tokenizer, or its folder or Hub id. By default, that of the folder or Hub id in `clip`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of both towers. `None` keeps those of the backbone.
        config_overrides:
            Fields of [`AdaClipConfig`] that the file does not determine, and arguments of
            [`AdaClipForAnomalyDetection.from_clip`], such as `dtype` and `revision`.

    Returns:
        [`AdaClipForAnomalyDetection`]: the model, in eval mode.

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: if the file is not of the published code or was trained on another backbone, or a setting is
            unknown or determined by the file.
    """
    if hidden_act is not None and hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act is {hidden_act!r}; expected None, 'gelu', 'quick_gelu' or another activation.")
    lists = _read_lists(read_released(checkpoint, _CODE))
    settings = _settings(lists)
    _check_overrides(config_overrides, {"clip_config", "prompting_length", *settings})
    hub_kwargs = {name: config_overrides.pop(name) for name in HUB_KWARGS if name in config_overrides}
    backbone, origin = load_clip(clip, **hub_kwargs)
    _check_shapes(lists, settings["prompting_length"], backbone.config)
    source = clip if tokenizer is None else tokenizer
    if isinstance(source, (str, os.PathLike)):
        tokenizer = find_tokenizer(source, **hub_kwargs)
    if hidden_act is not None:
        backbone = with_activation(backbone, hidden_act)
    model = AdaClipForAnomalyDetection.from_clip(backbone, tokenizer, **settings, **config_overrides)
    count = len(lists["patch_token_layer.head"])
    if count != len(model.config.layers):
        raise ValueError(
            f"feature_layers is {model.config.layers}; expected {count} layers, the number of heads for patches in "
            "the checkpoint."
        )
    weights = _convert(lists)
    targets = model.adapter_state_dict()
    model.load_state_dict({name: weights[name] for name in targets}, strict=False)
    # The file does not contain the training data.
    model.provenance = Provenance.from_dict({**origin, "training_recorded": False})
    remember_weights(model)
    return model


def _read_lists(content: Mapping[str, Any]) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Return the tensors by list and number, after checking names, types and values. A static prompt is a dict with
    the key "prompt", a linear layer has "weight" and "bias"."""
    found: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for key, entry in content.items():
        match = _KEY.fullmatch(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
        if match is None or match[5] not in (None, "weight", "bias"):
            raise ValueError(f"The checkpoint has the entry {key}; expected only those of {_CODE}.")
        name, number, kind = (match[1], match[2], "prompt") if match[1] else (match[3], match[4], match[5])
        _check_tensor(key, entry, 1 if kind == "bias" else 2)
        found.setdefault(name, {}).setdefault(int(number), {})[kind] = entry
    lists = {}
    for name, numbers in found.items():
        kinds = {"prompt"} if name in _STATIC else {"weight", "bias"}
        if sorted(numbers) != list(range(len(numbers))) or any(set(one) != kinds for one in numbers.values()):
            listed = ", ".join(f"{number}: {'+'.join(sorted(one))}" for number, one in sorted(numbers.items()))
            raise ValueError(f"{PREFIX}{name} has the entries {listed}; expected {' and '.join(kinds)} of 0, 1, ...")
        lists[name] = [numbers[number] for number in range(len(numbers))]
    missing = [name for name in _LINEAR[:2] if name not in lists]
    missing += [name for name in _LINEAR[2:] if (_LINEAR[2] in lists or _LINEAR[3] in lists) and name not in lists]
    if missing or not any(name in lists for name in (*_STATIC, *_LINEAR[2:])):
        missing = missing or [*_STATIC, *_LINEAR[2:]]
        raise ValueError(f"The checkpoint lacks {', '.join(PREFIX + name for name in missing)}, as in {_CODE}.")
    return lists


def _check_tensor(key: str, entry: object, dims: int) -> None:
    if not isinstance(entry, torch.Tensor):
        raise ValueError(f"{key} is of type {type(entry).__name__}; expected a tensor.")
    if entry.dim() != dims or not entry.is_floating_point() or entry.layout != torch.strided or 0 in entry.shape:
        raise ValueError(
            f"{key} is a {entry.dtype} tensor of shape {tuple(entry.shape)} and layout {entry.layout}; expected a "
            f"dense floating-point tensor with {dims} dimension{'s' if dims > 1 else ''}."
        )
    if not torch.isfinite(entry).all():
        raise ValueError(f"{key} contains NaN or infinite values; expected finite ones.")


def _settings(lists: dict[str, list[dict[str, torch.Tensor]]]) -> dict[str, Any]:
    """Return the fields of the configuration that the file determines."""
    static = [name for name in _STATIC if name in lists]
    is_dynamic = _LINEAR[2] in lists
    settings: dict[str, Any] = {"prompting_type": ("S" if static else "") + ("D" if is_dynamic else "")}
    lengths = {len(lists[name]) for name in _LINEAR[2:] if is_dynamic}
    lengths |= {len(one["prompt"]) for name in static for one in lists[name]}
    depths = {len(lists[name]) for name in static}
    if len(lengths) != 1 or len(depths) > 1:
        raise ValueError(
            f"The prompts of the checkpoint have the lengths {sorted(lengths)} and the depths {sorted(depths)}; "
            "expected one length and one depth."
        )
    settings["prompting_length"] = lengths.pop()
    if static:
        settings["prompting_branch"] = "".join(letter for letter, name in zip("VL", _STATIC) if name in static)
        settings["prompting_depth"] = depths.pop()
    return settings


def _check_overrides(names: Iterable[str], fixed: set[str]) -> None:
    names = [name for name in names if name not in _FROM_CLIP]
    wrong = [name for name in names if name in fixed]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} cannot be overridden, because the checkpoint determines it.")
    AdaClipConfig.check_names(names)


def _check_shapes(lists: dict[str, list[dict[str, torch.Tensor]]], length: int, config: CLIPConfig) -> None:
    """Check the shapes. With another backbone, the weights do not fit the model."""
    vision: Any = config.vision_config
    text: Any = config.text_config
    joint, width, text_width = config.projection_dim, vision.hidden_size, text.hidden_size
    expected = {
        _STATIC[0]: (length, width), _STATIC[1]: (length, text_width), _LINEAR[0]: (joint, width),
        _LINEAR[1]: (joint, joint), _LINEAR[2]: (width, joint), _LINEAR[3]: (text_width, joint),
    }  # fmt: skip
    for name, entries in lists.items():
        shape = expected[name]
        for number, one in enumerate(entries):
            for kind, tensor in one.items():
                wanted = shape[:1] if kind == "bias" else shape
                if tuple(tensor.shape) != wanted:
                    raise ValueError(
                        f"{kind} of {PREFIX}{name}.{number} has shape {tuple(tensor.shape)}; expected {wanted}. "
                        f"{_OTHER_BACKBONE}"
                    )
    if len(lists[_LINEAR[1]]) != 1:
        raise ValueError(f"{PREFIX}{_LINEAR[1]} has {len(lists[_LINEAR[1]])} linear layers; expected 1.")


def _convert(lists: dict[str, list[dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """Return the weights by their names in the model."""
    weights: dict[str, torch.Tensor] = {}
    for new, static, dynamic in (("vision", _STATIC[0], _LINEAR[2]), ("text", _STATIC[1], _LINEAR[3])):
        if static in lists:
            # The published code has a prompt for the first text block, and does not use it.
            prompts = [one["prompt"] for one in lists[static]][1 if new == "text" else 0 :]
            weights[f"{new}_prompts.static"] = torch.stack(prompts) if prompts else torch.empty(0)
        if dynamic in lists:
            # One linear layer instead of one for each token of the prompts.
            for kind in ("weight", "bias"):
                weights[f"{new}_prompts.dynamic.{kind}"] = torch.cat([one[kind] for one in lists[dynamic]])
    for kind in ("weight", "bias"):
        weights[f"image_head.{kind}"] = lists[_LINEAR[1]][0][kind]
        weights.update({f"patch_heads.{number}.{kind}": one[kind] for number, one in enumerate(lists[_LINEAR[0]])})
    return weights


__all__ = ["convert_adaclip_checkpoint"]
