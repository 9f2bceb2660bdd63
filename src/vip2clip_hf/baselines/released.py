"""Read `.pth` files of the published codes, and the activation that these codes use."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from ..models.released_files import read_tensors


def read_released(checkpoint: str | os.PathLike | Mapping, what: str = "the published code") -> dict[str, Any]:
    """
    Read a checkpoint of a published code.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`): `.pth` file, or its content.
        what (`str`): the code, for messages.

    Returns:
        `dict[str, Any]`: the content. State dicts, nested or not, are dicts of entries by name, without the prefix
        `module.` of `torch.nn.DataParallel`.

    Raises:
        OSError: if the file is missing or damaged.
        ValueError: if it contains something else than a dict.
    """
    content = read_tensors(checkpoint, what)
    if not isinstance(content, Mapping):
        raise ValueError(f"The checkpoint contains a {type(content).__name__}; expected a dict from {what}.")
    return _without_prefix(content)


def _without_prefix(content: Mapping) -> dict[str, Any]:
    found = {str(name): _without_prefix(one) if isinstance(one, Mapping) else one for name, one in content.items()}
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): one for name, one in found.items()}
    return found


def with_activation(clip: CLIPModel, hidden_act: str) -> CLIPModel:
    """
    Change the activation of a CLIP model. The model that is passed does not change.

    Args:
        clip (`CLIPModel`): the model.
        hidden_act (`str`): activation of both towers, such as `"gelu"`.

    Returns:
        `CLIPModel`: a model that shares the weights.
    """
    config: Any = CLIPConfig.from_dict(clip.config.to_dict())
    config.text_config.hidden_act = config.vision_config.hidden_act = hidden_act
    with torch.device("meta"):
        other = CLIPModel(config)
    other.load_state_dict(clip.state_dict(), assign=True)
    return other


__all__ = ["read_released", "with_activation"]
