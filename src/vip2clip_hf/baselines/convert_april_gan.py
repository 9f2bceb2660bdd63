"""Convert checkpoints of APRIL-GAN's published code to AprilGanForAnomalyDetection.

A published `.pth` file contains `{"trainable_linearlayer": state_dict}` with `fc.0.weight`, `fc.0.bias`, `fc.1.weight`
and so on, one linear layer for each feature layer.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPModel
from transformers.activations import ACT2FN

from ..models.vip2clip.backbone_vip2clip import HUB_KWARGS, load_clip
from ..models.vip2clip.provenance_vip2clip import Provenance
from ..models.vip2clip.training_record_vip2clip import remember_weights
from .april_gan import AprilGanForAnomalyDetection
from .april_gan_configuration import AprilGanConfig
from .released import read_released, with_activation
from .tokenizing import find_tokenizer


PART = "trainable_linearlayer"
_CODE = "the published code of APRIL-GAN"
_OTHER_BACKBONE = "The checkpoint was trained on another backbone (the authors used CLIP ViT-L/14@336px)."


def convert_april_gan_checkpoint(
    checkpoint: str | os.PathLike | Mapping,
    clip: CLIPModel | str | os.PathLike,
    *,
    tokenizer: Any = None,
    hidden_act: str | None = "gelu",
    **config_overrides: Any,
) -> AprilGanForAnomalyDetection:
    """
    Convert a checkpoint of APRIL-GAN's published code.

    The published code computes OpenAI's weights with the exact GELU if the image size is another one than that of the
    backbone, as in its recipe (518 and 336 pixels), although they were trained with QuickGELU. Its adapters were
    trained with these features, so the activation of both towers is `"gelu"` by default. Pass `hidden_act=None` for
    adapters that were trained at the image size of the backbone, or with other weights than OpenAI's.

    The file does not contain the settings of the authors' scripts: image size and layers. The defaults of the
    configuration are those of their recipe and can be overridden.

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
            Fields of [`AprilGanConfig`] except `clip_config`, and arguments of
            [`AprilGanForAnomalyDetection.from_clip`], such as `dtype` and `revision`.

    Returns:
        [`AprilGanForAnomalyDetection`]: the model, in eval mode.

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: if the file is not of the published code or was trained on another backbone, the number of feature
            layers is not that of the file, or a setting is unknown or determined by the file.
    """
    if hidden_act is not None and hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act is {hidden_act!r}; expected None, 'gelu', 'quick_gelu' or another activation.")
    if "clip_config" in config_overrides:
        raise ValueError("clip_config cannot be overridden, because the backbone determines it.")
    layers = _linear_layers(read_released(checkpoint, _CODE))
    hub_kwargs = {name: config_overrides.pop(name) for name in HUB_KWARGS if name in config_overrides}
    backbone: Any
    backbone, origin = load_clip(clip, **hub_kwargs)
    # Check the sizes first: with another backbone, the weights do not fit the model.
    sizes = {tuple(layers[key].shape) for key in layers if key.endswith("weight")}
    expected = (backbone.config.projection_dim, backbone.config.vision_config.hidden_size)
    if sizes != {expected}:
        raise ValueError(
            f"The linear layers of the checkpoint have the shapes {sorted(sizes)}; expected {expected}, the size of "
            f"the joint space and the width of the vision tower. {_OTHER_BACKBONE}"
        )
    source = clip if tokenizer is None else tokenizer
    if isinstance(source, (str, os.PathLike)):
        tokenizer = find_tokenizer(source, **hub_kwargs)
    if hidden_act is not None:
        backbone = with_activation(backbone, hidden_act)
    count = len(layers) // 2
    chosen = config_overrides.get("feature_layers", AprilGanConfig.feature_layers)
    if len(chosen) != count:
        raise ValueError(
            f"feature_layers is {tuple(chosen)}; expected {count} layers, the number of linear layers in the "
            "checkpoint."
        )
    model = AprilGanForAnomalyDetection.from_clip(backbone, tokenizer, **config_overrides)
    model.load_state_dict({key.replace("fc.", "linear_layers.", 1): one for key, one in layers.items()}, strict=False)
    # The file does not contain the training data.
    model.provenance = Provenance.from_dict({**origin, "training_recorded": False})
    remember_weights(model)
    return model


def _linear_layers(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the entries of the linear layers, after checking names, types and values."""
    entries = content.get(PART)
    if not isinstance(entries, Mapping):
        raise ValueError(f"The checkpoint has the entries {sorted(content)}; expected {PART}, as in {_CODE}.")
    count = sum(name.endswith(".weight") for name in entries)
    names = [f"fc.{index}.{kind}" for index in range(count) for kind in ("weight", "bias")]
    if not count or sorted(names) != sorted(entries):
        raise ValueError(
            f"{PART} has the entries {', '.join(sorted(entries)) or 'none'}; expected weight and bias of fc.0, fc.1 "
            "and so on."
        )
    for name in names:
        entry, dims = entries[name], 2 if name.endswith("weight") else 1
        if not isinstance(entry, torch.Tensor):
            raise ValueError(f"{name} is of type {type(entry).__name__}; expected a tensor.")
        if entry.dim() != dims or not entry.is_floating_point() or entry.layout != torch.strided or 0 in entry.shape:
            raise ValueError(
                f"{name} is a {entry.dtype} tensor of shape {tuple(entry.shape)} and layout {entry.layout}; expected "
                f"a dense floating-point tensor with {dims} dimension{'s' if dims > 1 else ''}."
            )
        if not torch.isfinite(entry).all():
            raise ValueError(f"{name} contains NaN or infinite values; expected finite ones.")
        if dims == 1 and len(entry) != len(entries[name.replace("bias", "weight")]):
            raise ValueError(
                f"{name} has {len(entry)} values; expected {len(entries[name.replace('bias', 'weight')])}, as many "
                "as its weight has rows."
            )
    return dict(entries)


__all__ = ["convert_april_gan_checkpoint"]
