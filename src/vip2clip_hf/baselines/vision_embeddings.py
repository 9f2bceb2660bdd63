"""Position embeddings of the baselines, with a configurable interpolation."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from .configuration import BaselineConfig


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """
    Convert half precision to float32. Keep float32 and float64.

    Args:
        tensor (`torch.Tensor`): the tensor.

    Returns:
        `torch.Tensor`: the tensor in float32 or float64.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class BaselineVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch and position embeddings, with a configurable interpolation of the position embeddings."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config.clip.vision_config)
        self.mode = config.position_interpolation

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """
        Resize the position embeddings for an image size, without changing the stored ones.

        Args:
            embeddings (`torch.Tensor`): not used, part of the signature in `CLIPVisionEmbeddings`.
            height, width (`int`): size of the image in pixels.

        Returns:
            `torch.Tensor` of shape `(1, 1 + num_patches, hidden_size)`: the position embeddings.
        """
        table = self.position_embedding(self.position_ids)  # (1, 1 + native * native, hidden)
        native = math.isqrt(self.position_embedding.num_embeddings - 1)
        patch: Any = self.patch_size  # typed as a pair, too
        grid = (height // patch, width // patch)
        if grid == (native, native):
            return table
        mode, _, antialias = self.mode.partition("_")
        patches = upcast(table[:, 1:]).mT.unflatten(-1, (native, native))
        patches = F.interpolate(patches, size=grid, mode=mode, align_corners=False, antialias=bool(antialias))
        return torch.cat([table[:, :1], patches.flatten(2).mT.to(table.dtype)], dim=1)  # (1, 1 + grid * grid, hidden)


__all__ = ["BaselineVisionEmbeddings", "upcast"]
