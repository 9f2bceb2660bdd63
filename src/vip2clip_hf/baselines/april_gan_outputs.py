"""Output and references of APRIL-GAN."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers.utils.generic import ModelOutput

from ..models.vip2clip.reference_distances_vip2clip import normalized


@dataclass
class AprilGanOutput(ModelOutput):
    """
    Output of [`AprilGanForAnomalyDetection`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `mask_labels`):
            Sum of `loss_components`.
        loss_components (`dict[str, torch.FloatTensor]`, *optional*, returned with `mask_labels`):
            Parts of the loss, `focal` and `dice_anomalous`, summed over layers.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Image scores, in [0, 1]. With references, they are not the published ones, see the model.
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`, *optional*, returned without
            `mask_labels`): Anomaly maps. Their range depends on `config.map_reduction`.
        zero_shot_scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, from its class token. Without references, they equal `scores`.
        map_maxima (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, returned without `mask_labels`):
            Maximum of each map, for [`published_few_shot_scores`].
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Scaled cosines of the image and the prompts [normal, anomalous].
        patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Scaled cosines of the patches of each layer and the prompts [normal, anomalous].
        reference_grid_maps (`torch.FloatTensor` of shape `(batch_size, num_few_shot_layers, grid, grid)`, *optional*,
            returned with `references`): Distances of patches to the references, in [0, 2].
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
            Embeddings of the prompts [normal, anomalous] of each image, L2-normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings, L2-normalized.
    """

    loss: torch.Tensor | None = None
    loss_components: dict[str, torch.Tensor] | None = None
    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    zero_shot_scores: torch.Tensor | None = None
    map_maxima: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    reference_grid_maps: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


@dataclass
class AprilGanReferences:
    """
    Patch tokens of photos of good parts, from [`AprilGanForAnomalyDetection.encode_images`].

    Args:
        patch_embeds (`torch.FloatTensor` of shape `(num_images, num_layers, num_patches, hidden_size)`):
            Outputs of the vision blocks `few_shot_layers`, without class token, not normalized.
    """

    patch_embeds: torch.Tensor

    def __len__(self) -> int:
        return len(self.patch_embeds)

    @classmethod
    def join(cls, parts: "Sequence[AprilGanReferences]") -> "AprilGanReferences":
        """
        Join the patch tokens of batches.

        Args:
            parts (`Sequence[AprilGanReferences]`): patch tokens of at least one batch.

        Returns:
            [`AprilGanReferences`]: the patch tokens of all images.
        """
        return cls(torch.cat([part.patch_embeds for part in parts]))

    @cached_property
    def rows(self) -> torch.Tensor:
        """All patches, L2-normalized, of shape `(num_layers, num_images * num_patches, hidden_size)`. They are
        computed once."""
        with torch.inference_mode(False), torch.no_grad():
            return normalized(self.patch_embeds.transpose(0, 1).flatten(1, 2))  # (L, k * P, width)


__all__ = ["AprilGanOutput", "AprilGanReferences"]
