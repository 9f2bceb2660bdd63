"""Cache of the prompt prefix, the tokens that the prompts of all images share.

A prompt is [start] [context] [state word] [image tokens] [end]. Attention in CLIP's text tower is causal. Keys and
values of the tokens before the image tokens therefore depend only on the weights. They are computed once, cached, and
the weights are compared at every use.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPAttention, eager_attention_forward


@dataclass
class ViP2ClipPromptPrefix:
    """
    Keys and values of the prompt prefix, the tokens that the prompts of all images share.

    Args:
        length (`int`):
            Number of tokens in the prefix.
        keys, values (`list[torch.FloatTensor]`):
            One tensor per block of the text tower, of shape `(2, num_heads, length, head_dim)`, in the order
            [normal, anomalous].
    """

    # Do not add a method `to`. Hooks that distribute a model over devices would call it and pass on a copy.
    length: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


class ViP2ClipTextAttention(CLIPAttention):
    """Attention of CLIP's text tower that can read keys and values from a prefix, or record its own. Weights and
    parameter names are the same as in `CLIPAttention`."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
        record: ViP2ClipPromptPrefix | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Compute self-attention, as `CLIPAttention` does.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch_size * 2, length, text_width)`):
                Hidden states. The two prompts of an image are adjacent.
            attention_mask (`torch.Tensor`, *optional*):
                Mask in the form that the attention implementation expects.
            prefix (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
                Keys and values of the earlier tokens, each of shape `(2, num_heads, prefix_length, head_dim)`.
            record ([`ViP2ClipPromptPrefix`], *optional*):
                Prefix to append the keys and values of these tokens to.
            kwargs:
                Passed to the attention implementation.

        Returns:
            `tuple`: hidden states of the same shape, and `None` in place of the attention weights.
        """
        batch, length, width = hidden_states.shape

        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(batch, length, -1, self.head_dim).transpose(1, 2)  # (B * 2, heads, T, head_dim)

        queries, keys, values = (split(layer(hidden_states)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if record is not None:
            record.keys.append(keys)
            record.values.append(values)
        if prefix is not None:
            # The prefix is the same for every image.
            earlier = (part.to(keys).expand(batch // 2, -1, -1, -1, -1).flatten(0, 1) for part in prefix)
            keys, values = (torch.cat(pair, dim=2) for pair in zip(earlier, (keys, values)))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        output, _ = attend(self, queries, keys, values, attention_mask, scaling=self.scale, dropout=dropout, **kwargs)
        return self.out_proj(output.reshape(batch, length, width)), None


class PromptPrefixCache:
    """
    Cache for the prefix of the current weights.

    A cached prefix is valid for the same settings and the same weight tensors, as long as PyTorch counts no writes to
    them. The learned vectors are compared by value, because some libraries write to `parameter.data`, which is not
    counted. Entries are replaced and never modified, so the cache can be used from several threads.
    """

    def __init__(self) -> None:
        self._entry: tuple | None = None

    def __deepcopy__(self, memo: dict) -> "PromptPrefixCache":
        return PromptPrefixCache()

    def __reduce__(self) -> tuple:
        return PromptPrefixCache, ()

    def clear(self) -> None:
        """Remove the cached prefix."""
        self._entry = None

    def get(
        self, settings: Any, weights: Iterable[nn.Parameter], learned: Iterable[nn.Parameter]
    ) -> ViP2ClipPromptPrefix | None:
        """
        Look up the prefix of these settings and weights.

        Args:
            settings: settings the prefix depends on, compared by value.
            weights (`Iterable[nn.Parameter]`): weights the prefix depends on, compared by identity.
            learned (`Iterable[nn.Parameter]`): learned vectors among the weights, compared by value.

        Returns:
            [`ViP2ClipPromptPrefix`]: the cached prefix. `None` if there is none, or if it is out of date.
        """
        entry = self._entry  # read once: another thread may replace it
        if entry is None:
            return None
        cached_settings, cached_weights, cached_learned, prefix = entry
        if cached_settings != settings:
            return None
        weights, learned = list(weights), list(learned)
        if len(weights) != len(cached_weights):
            return None
        for weight, (cached, version) in zip(weights, cached_weights):
            if weight.data_ptr() != cached.data_ptr() or weight._version != version or weight.dtype != cached.dtype:
                return None
        # torch.equal raises an error for tensors on different devices.
        same = all(one.device == two.device and torch.equal(one, two) for one, two in zip(learned, cached_learned))
        return prefix if same else None

    def put(
        self,
        settings: Any,
        weights: Iterable[nn.Parameter],
        learned: Iterable[nn.Parameter],
        prefix: ViP2ClipPromptPrefix,
    ) -> None:
        """
        Cache a prefix. The arguments are those of [`get`].

        Args:
            settings: settings the prefix depends on.
            weights (`Iterable[nn.Parameter]`): weights the prefix depends on.
            learned (`Iterable[nn.Parameter]`): learned vectors among the weights.
            prefix ([`ViP2ClipPromptPrefix`]): the prefix to cache.
        """
        # Keep the tensors themselves: the address of a freed tensor can be reused by another one.
        versions = [(weight.detach(), weight._version) for weight in weights]
        self._entry = settings, versions, [one.detach().clone() for one in learned], prefix


__all__ = ["PromptPrefixCache", "ViP2ClipPromptPrefix", "ViP2ClipTextAttention"]
