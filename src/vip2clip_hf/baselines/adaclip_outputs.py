"""Outputs of AdaCLIP."""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class AdaClipImageFeatures(ModelOutput):
    """
    Output of [`AdaClipForAnomalyDetection.encode_images`].

    Args:
        plain_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
            Image embeddings of the vision tower without prompts, not normalized. `None` without dynamic prompts.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings of the vision tower with prompts, not normalized.
        patch_tokens (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, hidden_size)`):
            Outputs of the feature layers with prompts, without class token and prompts.
    """

    plain_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    patch_tokens: torch.Tensor | None = None


@dataclass
class AdaClipOutput(ModelOutput):
    """
    Output of [`AdaClipForAnomalyDetection`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels` or `mask_labels`):
            Training loss.
        loss_components (`dict[str, torch.FloatTensor]`, *optional*, returned with `loss`):
            Parts of the loss: `image`, `focal`, `dice_anomalous` and `dice_normal`. The last three are summed over
            layers.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`, *optional*):
            Anomaly maps, in [0, 1]. `None` with labels.
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Scaled cosines of the image and the prompts [normal, anomalous].
        patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Scaled cosines of each patch and the prompts [normal, anomalous].
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`):
            Embeddings of the prompts [normal, anomalous], L2-normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings after their head, before the fusion with clusters, L2-normalized.
        cluster_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
            Mean of the clusters of anomalous patches, L2-normalized. `None` with `use_hsf=False`.
    """

    loss: torch.Tensor | None = None
    loss_components: dict[str, torch.Tensor] | None = None
    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    cluster_embeds: torch.Tensor | None = None


__all__ = ["AdaClipImageFeatures", "AdaClipOutput"]
