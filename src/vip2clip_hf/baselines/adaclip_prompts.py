"""Learned prompts of AdaCLIP, and the blocks of both towers with them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig
from transformers.masking_utils import create_causal_mask

from .adaclip_configuration import AdaClipConfig


def kept_dtype() -> torch.dtype:
    """Return the dtype of new adapters: float32, also if CLIP is in half precision, or float64."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


class AdaClipPrompts(nn.Module):
    """
    Prompts of one tower: static ones for each block, dynamic ones from the image for all blocks, or their sum.

    Args:
        config ([`AdaClipConfig`]): configuration.
        depth (`int`): number of blocks with prompts.
        width (`int`): width of the tower.
    """

    def __init__(self, config: AdaClipConfig, depth: int, width: int) -> None:
        super().__init__()
        length, joint = config.prompting_length, config.clip.projection_dim
        self.shape = (depth, length, width)
        kept = kept_dtype()
        self.static = nn.Parameter(torch.zeros(self.shape, dtype=kept)) if config.is_static else None
        self.dynamic = nn.Linear(joint, length * width, dtype=kept) if config.is_dynamic else None

    def forward(self, plain_embeds: torch.Tensor | None) -> torch.Tensor:
        """
        Compute the prompts of images.

        Args:
            plain_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*): image embeddings
                of the vision tower without prompts, not normalized. Required for dynamic prompts.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, depth, length, width)`: prompts of each block. Without dynamic
                prompts, the batch size is 1.

        Raises:
            ValueError: if there are dynamic prompts, and no embeddings are passed.
        """
        prompts = None if self.static is None else self.static[None]  # (1, J, L, width)
        if self.dynamic is None:
            if prompts is None:
                raise ValueError("The prompts are neither static nor dynamic; expected one of them.")
            return prompts
        if plain_embeds is None:
            raise ValueError("plain_embeds is None; expected image embeddings, from which the prompts are computed.")
        depth, length, width = self.shape
        dynamic = self.dynamic(plain_embeds).view(-1, 1, length, width)  # (B, 1, L, width)
        return dynamic.expand(-1, depth, -1, -1) if prompts is None else prompts + dynamic  # (B, J, L, width)


def vision_blocks(
    blocks: Iterable[nn.Module], hidden: torch.Tensor, prompts: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """
    Run the blocks of the vision tower. The first ones replace the prompts at the end of the sequence.

    Args:
        blocks (`Iterable[nn.Module]`): all blocks.
        hidden (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`): input of the first block.
        prompts (`torch.FloatTensor` of shape `(batch_size or 1, depth, length, hidden_size)`, *optional*): result of
            [`AdaClipPrompts`].

    Yields:
        `torch.FloatTensor` of shape `(batch_size, num_tokens + length, hidden_size)`: output of each block.
    """
    num_tokens = hidden.shape[1]
    for number, block in enumerate(blocks):
        if prompts is not None and number < prompts.shape[1]:
            added = prompts[:, number].to(hidden.dtype).expand(len(hidden), -1, -1)
            hidden = torch.cat([hidden[:, :num_tokens], added], dim=1)  # (B, T + L, width)
        hidden = block(hidden, None)
        yield hidden


def text_blocks(text_model: Any, input_ids: torch.Tensor, prompts: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """
    Run the blocks of the text tower. Before the second and later blocks, prompts replace the states of the tokens
    after the start token.

    The first block has no prompts, so it runs once for all images.

    Args:
        text_model (`CLIPTextModel`): the text tower.
        input_ids (`torch.LongTensor` of shape `(num_prompts, length)`): token ids with start and end token.
        prompts (`torch.FloatTensor` of shape `(batch_size or 1, depth - 1, prompting_length, text_width)`,
            *optional*): result of [`AdaClipPrompts`].

    Yields:
        `torch.FloatTensor`: output of each block, of shape `(num_prompts, length, text_width)`. From the second block
            on, there are `batch_size * num_prompts` sequences, those of the first image first.
    """
    hidden = text_model.embeddings(input_ids=input_ids)  # (N, T, C)
    count, length = len(hidden), hidden.shape[1]
    # sdpa uses is_causal, and its mask is None. eager uses the mask. The mask is the same for all sequences.
    mask = create_causal_mask(text_model.config, hidden[:1], None, None)
    for number, block in enumerate(text_model.encoder.layers):
        if prompts is not None and 1 <= number <= prompts.shape[1]:
            added = prompts[:, number - 1, None].to(hidden.dtype)  # (B, 1, L, C)
            images, _, replaced, width = added.shape
            states = hidden.view(-1, count, length, width).expand(images, -1, -1, -1)  # (B, N, T, C)
            added = added.expand(-1, count, -1, -1)
            hidden = torch.cat([states[:, :, :1], added, states[:, :, 1 + replaced :]], dim=2).flatten(0, 1)
        hidden = block(hidden, mask, is_causal=True)
        yield hidden  # (B * N, T, C)


def end_positions(input_ids: torch.Tensor, config: CLIPTextConfig) -> torch.Tensor:
    """
    Find the first end token of each prompt.

    Args:
        input_ids (`torch.LongTensor` of shape `(num_prompts, length)`): token ids.
        config (`CLIPTextConfig`): configuration of the text tower.

    Returns:
        `torch.LongTensor` of shape `(num_prompts,)`: positions.
    """
    # 2, a value in old configurations, stands for the largest id.
    end: Any = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    return (input_ids.eq(end).cumsum(dim=1) == 0).sum(dim=1)


__all__ = ["AdaClipPrompts", "end_positions", "kept_dtype", "text_blocks", "vision_blocks"]
