"""The trained modules: learned prompt vectors, image-conditioned adapter (ICA) and fine-grained perception (FGP).

In shape comments, B is the batch size, L the number of feature layers, P the number of patches, D the size of CLIP's
joint space, hd the size of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .configuration_vip2clip import ViP2ClipConfig


HALF = (torch.float16, torch.bfloat16)


class ViP2ClipAdapter(nn.Module):
    """Base class of the trained modules. Their weights stay in float32 if the model is converted to half precision:
    an update of Adam is smaller than the resolution of half precision for most of them."""

    def _apply(self, fn: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> "ViP2ClipAdapter":
        def convert(tensor: torch.Tensor) -> torch.Tensor:
            converted = fn(tensor)
            if converted.dtype in HALF and tensor.dtype not in HALF:
                return tensor.to(converted.device)
            return converted

        return super()._apply(convert, *args, **kwargs)


def _parameter(*shape: int) -> nn.Parameter:
    """Create a parameter, in at least float32 also if the default dtype is half precision."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32)))


def _linear(in_features: int, out_features: int) -> nn.Linear:
    """Create a linear layer, in at least float32 also if the default dtype is half precision."""
    return nn.Linear(in_features, out_features, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32))


class ViP2ClipPromptLearner(ViP2ClipAdapter):
    """The learned vectors of the prompts (eqs. 2 and 3): v (normal), w (anomalous) and the object tokens o."""

    def __init__(self, config: ViP2ClipConfig) -> None:
        super().__init__()
        width = config.clip_text_config.hidden_size
        self.normal_context = _parameter(config.num_context_tokens, width)
        self.anomalous_context = _parameter(config.num_context_tokens, width)
        self.object_tokens = _parameter(config.num_object_tokens, width)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Return the learned vectors.

        Returns:
            `tuple`: the normal and the anomalous context, each of shape `(num_context_tokens, text_width)`, and the
            object tokens of shape `(num_object_tokens, text_width)`.
        """
        # Copies: FSDP frees the parameters of a module after its forward.
        return self.normal_context.clone(), self.anomalous_context.clone(), self.object_tokens.clone()


class ViP2ClipImageConditionedAdapter(ViP2ClipAdapter):
    """
    Image-conditioned adapter (ICA): conditions the object tokens on the image, z_i = o_i + a_i (eqs. 4 and 5).

    A Meta-Net (Linear, ReLU, Linear) per token maps the image embedding to the offset a_i. The learned vector added to
    the input of all Meta-Nets is not in the paper, but in the released code and in the parameter count of Table 3.
    """

    def __init__(self, config: ViP2ClipConfig) -> None:
        super().__init__()
        self.enabled = config.use_image_conditioning
        if self.enabled:
            embed_dim, hidden = config.clip_projection_dim, config.meta_net_hidden_size
            width = config.clip_text_config.hidden_size
            self.input_bias = _parameter(embed_dim)
            self.meta_nets = nn.ModuleList(
                nn.Sequential(_linear(embed_dim, hidden), nn.ReLU(), _linear(hidden, width))
                for _ in range(config.num_object_tokens)
            )

    def forward(self, image_embeds: torch.Tensor, object_tokens: torch.Tensor) -> torch.Tensor:
        """
        Add the offsets of each image to the object tokens.

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                L2-normalized image embeddings.
            object_tokens (`torch.FloatTensor` of shape `(num_object_tokens, text_width)`):
                The learned object tokens o_i.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_object_tokens, text_width)`: the tokens z_i. Equal to o_i
            for every image if the module is disabled.
        """
        if not self.enabled:
            return object_tokens.expand(image_embeds.shape[0], -1, -1)
        shifted = image_embeds.to(self.input_bias.dtype) + self.input_bias
        return object_tokens + torch.stack([net(shifted) for net in self.meta_nets], dim=1)


class ViP2ClipFineGrainedPerception(ViP2ClipAdapter):
    """
    Fine-grained perception (FGP): cross-attention of the two prompts over the patches of a layer (eq. 6).

    All layers share the same weights. With plain linear layers, the patches are never projected, which is exact up to
    rounding and takes 5 ms instead of 95 ms for an image of ViT-L/14 on two CPU cores:

    - Keys: q (W_k f + b_k) = (q W_k) f + const, so the key projection is applied to the queries.
    - Values: the attention weights sum to one, so the value projection is applied to the weighted mean of the patches.
    """

    def __init__(self, config: ViP2ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.enabled = config.use_fine_grained_perception
        if self.enabled:
            embed_dim = config.clip_projection_dim
            self.q_proj = _linear(embed_dim, embed_dim)
            self.k_proj = _linear(embed_dim, embed_dim)
            self.v_proj = _linear(embed_dim, embed_dim)
            self.out_proj = _linear(embed_dim, embed_dim)

    def forward(
        self, text_embeds: torch.Tensor, patch_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Refine the prompts with the patches of every layer.

        Args:
            text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
                L2-normalized prompt embeddings.
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, projection_dim)`):
                L2-normalized patch embeddings.

        Returns:
            `tuple`: the refined prompts `(batch_size, num_layers, 2, projection_dim)`, not normalized, and the
            attention weights `(batch_size, num_layers, num_heads, 2, num_patches)`. If the module is disabled, the
            prompts are returned unchanged for every layer, and `None` instead of attention weights.
        """
        if not self.enabled:
            return text_embeds[:, None].expand(-1, patch_embeds.shape[1], -1, -1), None
        heads = self.config.fgp_num_heads
        scale = (patch_embeds.shape[-1] // heads) ** -0.5 if self.config.fgp_scaled else 1.0
        if all(map(_is_plain, (self.q_proj, self.k_proj, self.v_proj, self.out_proj))):
            return self._attend_folded(text_embeds, patch_embeds, heads, scale)
        queries = self.q_proj(text_embeds).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, 2, hd)
        keys = self.k_proj(patch_embeds).unflatten(-1, (heads, -1)).transpose(2, 3)  # (B, L, heads, P, hd)
        values = self.v_proj(patch_embeds).unflatten(-1, (heads, -1)).transpose(2, 3)
        attention = (queries[:, None] @ keys.mT * scale).softmax(dim=-1)  # (B, L, heads, 2, P)
        return self.out_proj((attention @ values).transpose(2, 3).flatten(-2)), attention  # (B, L, 2, D)

    def _attend_folded(
        self, text_embeds: torch.Tensor, patch_embeds: torch.Tensor, heads: int, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the same as `forward`, without projecting the patches."""

        def parameters_of(projection: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
            return projection.weight.to(patch_embeds.dtype), projection.bias.to(patch_embeds.dtype)

        key_weight, key_bias = parameters_of(self.k_proj)
        value_weight, value_bias = parameters_of(self.v_proj)
        key_weight = key_weight.unflatten(0, (heads, -1))  # (heads, hd, D)
        value_weight = value_weight.unflatten(0, (heads, -1))

        queries = F.linear(text_embeds, *parameters_of(self.q_proj)).unflatten(-1, (heads, -1))  # (B, 2, heads, hd)
        # The key bias adds a constant to all logits of a query and cancels in the softmax. Multiplied by zero, it
        # stays in the graph, as distributed training requires, and its gradient is exactly zero.
        queries = queries + 0.0 * key_bias.unflatten(0, (heads, -1))
        folded = torch.einsum("bthk,hkd->bhtd", queries, key_weight)  # (B, heads, 2, D)
        logits = torch.matmul(folded.flatten(1, 2)[:, None], patch_embeds.mT) * scale  # (B, L, heads * 2, P)
        attention = logits.softmax(dim=-1)
        pooled = torch.matmul(attention, patch_embeds).unflatten(2, (heads, 2))  # (B, L, heads, 2, D)
        values = torch.einsum("blhtd,hkd->blthk", pooled, value_weight).flatten(-2) + value_bias  # (B, L, 2, D)
        return F.linear(values, *parameters_of(self.out_proj)), attention.unflatten(2, (heads, 2))


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling a layer does nothing but `x W^T + b`: not for layers of PEFT, quantized or parametrized layers,
    and layers with hooks, such as those of accelerate and FSDP."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return (
        type(layer) is nn.Linear
        and layer.bias is not None
        # Not `type(weight) is nn.Parameter`: in exported graphs and replicas, a plain weight is not a parameter.
        and not any(map(is_traceable_wrapper_subclass, (layer.weight, layer.bias)))
        and not any(hooks)
        and "forward" not in vars(layer)  # replaced by accelerate
    )


__all__ = [
    "ViP2ClipAdapter",
    "ViP2ClipFineGrainedPerception",
    "ViP2ClipImageConditionedAdapter",
    "ViP2ClipPromptLearner",
]
