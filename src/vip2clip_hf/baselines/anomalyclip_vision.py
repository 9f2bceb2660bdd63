"""
The patch tokens of AnomalyCLIP: value-value attention beside the vision tower (DPAM in the paper).

The published code runs both paths inside the tower. The path of the values reads the states of the plain tower and is
never fed back, so it can be computed afterwards, from the states that other methods use, too.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


def value_attention(block: CLIPEncoderLayer, hidden: torch.Tensor) -> torch.Tensor:
    """
    Compute the attention of a block with its values in place of queries and keys.

    Args:
        block (`CLIPEncoderLayer`): vision block.
        hidden (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`): input of the block.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`: output of the attention, without the
        residual connection.
    """
    attention = block.self_attn
    values = attention.v_proj(block.layer_norm1(hidden))  # (B, T, width)
    values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (B, heads, T, width / heads)
    attended = F.scaled_dot_product_attention(values, values, values, scale=attention.scale)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))  # (B, T, width)


def value_path(
    clip: CLIPModel, hidden_states: Sequence[torch.Tensor], dpam_layers: int, last: int
) -> list[torch.Tensor]:
    """
    Compute the tokens of the value path after each block.

    Before the last `dpam_layers` blocks, they are those of the plain tower. From there on, each block adds its
    value-value attention of the plain tower's states, without feed-forward layer.

    Args:
        clip (`CLIPModel`): backbone.
        hidden_states (`Sequence[torch.FloatTensor]`): input of the first block and output of each block, of shape
            `(batch_size, 1 + num_patches, hidden_size)`.
        dpam_layers (`int`): number of last blocks with value-value attention.
        last (`int`): number of blocks to compute.

    Returns:
        `list[torch.FloatTensor]`: the tokens after each of the first `last` blocks, of shape
        `(batch_size, 1 + num_patches, hidden_size)`.
    """
    layers = clip.vision_model.encoder.layers
    first = len(layers) - dpam_layers
    path = list(hidden_states[1 : min(first, last) + 1])
    hidden = hidden_states[first]
    for number in range(first, last):
        hidden = hidden + value_attention(layers[number], hidden_states[number])  # (B, 1 + P, width)
        path.append(hidden)
    return path


def project_tokens(clip: CLIPModel, path: Sequence[torch.Tensor], feature_layers: Iterable[int]) -> torch.Tensor:
    """
    Project the tokens of the feature layers into the space of the texts.

    Args:
        clip (`CLIPModel`): backbone.
        path (`Sequence[torch.FloatTensor]`): result of [`value_path`].
        feature_layers (`Iterable[int]`): block numbers, counted from 1. A repeated block is computed once.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_layers, 1 + num_patches, projection_dim)`: class token and
        patches, not normalized.
    """
    numbers = list(feature_layers)
    normed = clip.vision_model.post_layernorm
    projected = {number: clip.visual_projection(normed(path[number - 1])) for number in set(numbers)}
    return torch.stack([projected[number] for number in numbers], dim=1)  # (B, L, 1 + P, D)


__all__ = ["project_tokens", "value_attention", "value_path"]
