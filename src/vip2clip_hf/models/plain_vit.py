"""A plain vision transformer: what can be rewritten as the vision tower of a CLIP model."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN


@dataclass
class PlainViT:
    """
    A vision transformer with a class token, learned position embeddings and normalization before each layer.

    Args:
        weights (`dict[str, torch.Tensor]`): `cls_token` of shape `(D,)`, `pos_embed` of shape `(1 + N, D)` with the
            class token first, `patch.weight` of shape `(D, 3, P, P)`, `norm.weight`, and for each block `B.norm1`,
            `B.q`, `B.k`, `B.v`, `B.out`, `B.norm2`, `B.fc1` and `B.fc2`, each with `.weight` and `.bias`. A scale of
            the output of a layer is part of `B.out` and `B.fc2`.
        num_heads (`int`): number of attention heads.
        num_layers (`int`): number of blocks.
        patch_size (`int`): side of a patch in pixels.
        image_size (`int`): side of the images in pixels.
        hidden_act (`str`): name of the activation, as in transformers.
        eps (`float`): epsilon of the normalizations.
        mean (`tuple[float, ...]`): mean of each colour that the ViT expects.
        std (`tuple[float, ...]`): standard deviation of each colour that the ViT expects.
    """

    weights: dict[str, torch.Tensor] = field(repr=False)
    num_heads: int
    num_layers: int
    patch_size: int
    image_size: int
    hidden_act: str
    eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.weights["cls_token"])

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """
        Compute the output of each block after the final normalization. Used to verify the rewritten tower.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, image_size, image_size)`): images, normalized with `mean`
                and `std`.

        Returns:
            `list[torch.Tensor]`: `(B, 1 + N, D)` for each block, with the class token first.
        """
        w = {name: tensor.float() for name, tensor in self.weights.items()}
        x = F.conv2d(pixel_values, w["patch.weight"], w["patch.bias"], stride=self.patch_size).flatten(2).mT
        x = torch.cat([w["cls_token"].expand(len(x), 1, -1), x], dim=1) + w["pos_embed"]
        found = []
        for b in range(self.num_layers):
            y = self._norm(x, w, f"{b}.norm1")
            q, k, v = (
                F.linear(y, w[f"{b}.{name}.weight"], w[f"{b}.{name}.bias"])
                .unflatten(-1, (self.num_heads, -1))
                .transpose(1, 2)
                for name in "qkv"
            )
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + F.linear(y, w[f"{b}.out.weight"], w[f"{b}.out.bias"])
            y = F.linear(self._norm(x, w, f"{b}.norm2"), w[f"{b}.fc1.weight"], w[f"{b}.fc1.bias"])
            x = x + F.linear(ACT2FN[self.hidden_act](y), w[f"{b}.fc2.weight"], w[f"{b}.fc2.bias"])
            found.append(self._norm(x, w, "norm"))
        return found

    def _norm(self, x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], self.eps)


__all__ = ["PlainViT"]
