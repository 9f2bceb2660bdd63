"""What the prompts of all images have in common, run through the text tower once.

A prompt is [start] [context] [state word] [image tokens] [end]. Attention in CLIP's text tower is causal, so that keys
and values of everything before the image tokens depend on the weights alone. They are kept, and checked at every use.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.models.clip.modeling_clip import ALL_ATTENTION_FUNCTIONS, CLIPAttention, eager_attention_forward


@dataclass
class ViP2ClipPromptPrefix:
    """
    Keys and values of the tokens that the prompts of all images begin with.

    Args:
        length (`int`):
            How many tokens these are.
        keys, values (`list[torch.FloatTensor]`):
            For every block of the text tower, `(2, num_heads, length, head_dim)`, order [normal, anomalous].
    """

    # No method `to`: hooks that spread a model over devices look for it, and would hand on a copy.
    length: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


class ViP2ClipTextAttention(CLIPAttention):
    """Attention of CLIP's text tower that can attend to tokens run before (`prefix`), or keep keys and values of its
    own (`record`). Weights and names are those of CLIP."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
        record: ViP2ClipPromptPrefix | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`hidden_states` (B * 2, T, C), the two prompts of an image side by side -> the same shape, and None."""
        batch, length, width = hidden_states.shape

        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(batch, length, -1, self.head_dim).transpose(1, 2)  # (B * 2, heads, T, head_dim)

        queries, keys, values = (split(layer(hidden_states)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if record is not None:
            record.keys.append(keys)
            record.values.append(values)
        if prefix is not None:
            # The same for every pair of prompts.
            earlier = (part.to(keys).expand(batch // 2, -1, -1, -1, -1).flatten(0, 1) for part in prefix)
            keys, values = (torch.cat(pair, dim=2) for pair in zip(earlier, (keys, values)))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        output, _ = attend(self, queries, keys, values, attention_mask, scaling=self.scale, dropout=dropout, **kwargs)
        return self.out_proj(output.reshape(batch, length, width)), None


class PromptPrefixCache:
    """
    The prefix of one set of weights. What is kept is never changed, only replaced, so that several threads can use it.

    Valid as long as the weights are the same tensors, not written to since (PyTorch counts that), and of the same
    settings. The learned vectors, which some libraries write to behind that count (`parameter.data`), are compared by
    value.
    """

    def __init__(self):
        self._kept: tuple | None = None

    def __deepcopy__(self, memo: dict) -> "PromptPrefixCache":
        return PromptPrefixCache()

    def __reduce__(self) -> tuple:
        return PromptPrefixCache, ()

    def clear(self):
        self._kept = None

    def get(
        self, settings: Any, weights: Iterable[nn.Parameter], learned: Iterable[nn.Parameter]
    ) -> ViP2ClipPromptPrefix | None:
        """The prefix that was stored for these settings and weights, if it was."""
        kept = self._kept  # once: another thread may replace it in between
        if kept is None:
            return None
        kept_settings, kept_weights, kept_learned, prefix = kept
        if kept_settings != settings:
            return None
        weights, learned = list(weights), list(learned)
        if len(weights) != len(kept_weights):
            return None
        for weight, (seen, version) in zip(weights, kept_weights):
            if weight.data_ptr() != seen.data_ptr() or weight._version != version or weight.dtype != seen.dtype:
                return None
        # Compared where they are: a look at values of another device would be an error.
        same = all(one.device == two.device and torch.equal(one, two) for one, two in zip(learned, kept_learned))
        return prefix if same else None

    def put(
        self,
        settings: Any,
        weights: Iterable[nn.Parameter],
        learned: Iterable[nn.Parameter],
        prefix: ViP2ClipPromptPrefix,
    ):
        # The weights are held, not only their addresses: memory that was freed could be given to others.
        held = [(weight.detach(), weight._version) for weight in weights]
        self._kept = settings, held, [one.detach().clone() for one in learned], prefix


__all__ = ["PromptPrefixCache", "ViP2ClipPromptPrefix", "ViP2ClipTextAttention"]
