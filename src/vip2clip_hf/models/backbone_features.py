"""Features of a vision transformer and of the CLIP tower that replaces it, to compare them."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, CLIPModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils.hub import cached_file

from .plain_vit import PlainViT


@torch.no_grad()
def original_features(
    source: str | os.PathLike, revision: str | None, vit: PlainViT, image: torch.Tensor
) -> list[torch.Tensor]:
    """
    Compute the features of all blocks with the original model, or with [`PlainViT`] for weights of timm.

    Args:
        source (`str` or `os.PathLike`): folder or Hub id.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        vit ([`PlainViT`]): the vision transformer that was read.
        image (`torch.Tensor` of shape `(B, 3, image_size, image_size)`): values between 0 and 1.

    Returns:
        `list[torch.Tensor]`: `(B, 1 + N, D)` for each block, after the final normalization.
    """
    pixels = _normalize(image, vit.mean, vit.std)
    path = cached_file(source, "config.json", revision=revision)
    if path is None or "model_type" not in json.loads(Path(path).read_text(encoding="utf-8")):
        return vit.features(pixels)
    model: Any = AutoModel.from_pretrained(source, dtype=torch.float32, revision=revision).eval()
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
    return [model.layernorm(state) for state in states]


@torch.no_grad()
def tower_features(clip: CLIPModel, image: torch.Tensor) -> list[torch.Tensor]:
    """
    Compute the projected features of all blocks of a CLIP model, see [`original_features`].

    Args:
        clip (`CLIPModel`): the model.
        image (`torch.Tensor` of shape `(B, 3, image_size, image_size)`): values between 0 and 1.

    Returns:
        `list[torch.Tensor]`: `(B, 1 + N, projection_dim)` for each block.
    """
    tower: Any = clip.vision_model
    pixels = _normalize(image, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
    return [clip.visual_projection(tower.post_layernorm(state)) for state in states]


def _normalize(image: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def deviation(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """
    Compare features.

    Args:
        found, expected (`list[torch.Tensor]`): features of each block.

    Returns:
        `float`: largest norm of the difference of a block, relative to the norm of the expected features.
    """
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True))


__all__ = ["deviation", "original_features", "tower_features"]
