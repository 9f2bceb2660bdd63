"""The trained modules: learned prompt vectors, image-conditioned adapter (ICA) and fine-grained perception (FGP).

In shape comments, B is the batch size, L the number of feature layers, P the number of patches, D the size of CLIP's
joint space, C the width of the text tower, r the number of image tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_vip2clip import ViP2ClipConfig


class ViP2ClipPromptLearner(nn.Module):
    """The learned vectors of the prompts (eqs. 2 and 3): v (normal), w (anomalous) and o (image tokens)."""

    def __init__(self, config: ViP2ClipConfig) -> None:
        super().__init__()
        width = config.clip_text_config.hidden_size
        self.normal_context = nn.Parameter(torch.empty(config.num_context_tokens, width))
        self.anomalous_context = nn.Parameter(torch.empty(config.num_context_tokens, width))
        self.image_tokens = nn.Parameter(torch.empty(config.num_image_tokens, width))


class ViP2ClipImageConditionedAdapter(nn.Module):
    """
    Image-conditioned adapter (ICA): conditions the image tokens on the image, z_i = o_i + a_i (eqs. 4 and 5).

    A Meta-Net (Linear, ReLU, Linear) per token maps the image embedding to the offset a_i. The learned vector added to
    the input of all Meta-Nets is not in the paper, but in the released code and in the parameter count of Table 3.
    """

    def __init__(self, config: ViP2ClipConfig) -> None:
        super().__init__()
        self.enabled = config.use_image_conditioning
        if self.enabled:
            embed_dim, hidden = config.clip_projection_dim, config.meta_net_hidden_size
            width = config.clip_text_config.hidden_size
            self.input_bias = nn.Parameter(torch.empty(embed_dim))
            self.meta_nets = nn.ModuleList(
                nn.Sequential(nn.Linear(embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, width))
                for _ in range(config.num_image_tokens)
            )

    def forward(self, image_embeds: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        """
        Add the offsets of each image to the learned image tokens.

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                L2-normalized image embeddings.
            image_tokens (`torch.FloatTensor` of shape `(num_image_tokens, text_width)`):
                The learned image tokens o_i.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_image_tokens, text_width)`: the image tokens z_i. Equal to
            o_i for every image when the module is disabled.
        """
        if not self.enabled:
            return image_tokens.expand(image_embeds.shape[0], -1, -1)
        shifted = image_embeds.to(self.input_bias.dtype) + self.input_bias
        return image_tokens + torch.stack([net(shifted) for net in self.meta_nets], dim=1)


class ViP2ClipFineGrainedPerception(nn.Module):
    """
    Fine-grained perception (FGP): attention of the two prompts over the patches of a layer (eq. 6).

    All layers share the same weights. The patches are never projected, which is exact up to rounding:

    - Keys: q (W_k f + b_k) = (q W_k) f + const, so the key projection is applied to the queries.
    - Values: the attention weights sum to one, so the value projection is applied to the weighted mean of the patches.

    Products with the P patches shrink from D x D to heads x D.
    """

    def __init__(self, config: ViP2ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.enabled = config.use_fine_grained_perception
        if self.enabled:
            embed_dim = config.clip_projection_dim
            self.q_proj = nn.Linear(embed_dim, embed_dim)
            self.k_proj = nn.Linear(embed_dim, embed_dim)
            self.v_proj = nn.Linear(embed_dim, embed_dim)
            self.out_proj = nn.Linear(embed_dim, embed_dim)

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
            attention weights `(batch_size, num_layers, num_heads, 2, num_patches)`. When the module is disabled, the
            prompts are returned unchanged for every layer, and `None` instead of attention weights.
        """
        num_layers = patch_embeds.shape[1]
        if not self.enabled:
            return text_embeds[:, None].expand(-1, num_layers, -1, -1), None
        dtype, heads = patch_embeds.dtype, self.config.perception_num_heads
        scale = (patch_embeds.shape[-1] // heads) ** -0.5 if self.config.perception_scaled else 1.0

        def parameters_of(projection: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
            return projection.weight.to(dtype), projection.bias.to(dtype)

        key_weight, key_bias = parameters_of(self.k_proj)
        value_weight, value_bias = parameters_of(self.v_proj)
        key_weight = key_weight.unflatten(0, (heads, -1))  # (heads, head_dim, D)
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


__all__ = ["ViP2ClipFineGrainedPerception", "ViP2ClipImageConditionedAdapter", "ViP2ClipPromptLearner"]
