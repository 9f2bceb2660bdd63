"""
CLIP without training: the class token gives the score, the patch tokens give the map.

There is no published code for the rows "CLIP" of papers on zero-shot anomaly detection. This module is a definition:
the prompts of the row in AnomalyCLIP (arXiv:2310.18961), probabilities of patches as maps, and the smoothing of its
evaluation. The configuration has the other choices.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.processing_utils import Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.generic import ModelOutput, TransformersKwargs, can_return_tuple

from ..models.vip2clip.maps_vip2clip import resize_maps, without_autocast
from .base import BaselineModel
from .clip_configuration import ClipAnomalyDetectionConfig
from .vision_embeddings import upcast


@dataclass
class ClipAnomalyDetectionOutput(ModelOutput):
    """
    Output of [`ClipForAnomalyDetection`].

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability that the image is anomalous, in [0, 1].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, image_size, image_size)`):
            Anomaly map, in [0, 1].
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Scaled cosines of the image and the prompts [normal, anomalous].
        patch_logits (`torch.FloatTensor` of shape `(batch_size, 2, grid, grid)`):
            Scaled cosines of each patch and the prompts [normal, anomalous].
        text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`):
            Embeddings of the prompts [normal, anomalous], L2-normalized.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Image embeddings, L2-normalized.
    """

    scores: torch.Tensor | None = None
    anomaly_maps: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class ClipForAnomalyDetection(BaselineModel):
    r"""
    CLIP for zero-shot anomaly detection, without training.

    With the projected class token f, the projected patch tokens p, the text embeddings t = [normal, anomalous] and the
    factor s of the cosines:

    - Text: each embedding of a prompt is L2-normalized; t is their mean, normalized again.
    - Score: softmax(s cos(f, t)), the probability of the anomalous prompts.
    - Map: softmax(s cos(p, t)) of each patch, resized bilinearly, then smoothed. Patch tokens pass CLIP's last layer
      norm and projection, as the class token does.

    The score does not use the map.

    Args:
        config ([`ClipAnomalyDetectionConfig`]): configuration. A model created from a configuration has random
            weights; use `from_clip` or `from_pretrained`.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipImageProcessor
    >>> from vip2clip_hf.baselines import ClipForAnomalyDetection

    >>> model = ClipForAnomalyDetection.from_clip("openai/clip-vit-large-patch14-336")
    >>> image_processor = ViP2ClipImageProcessor(size=model.config.image_size)
    >>> outputs = model(**image_processor("photo.jpg", return_tensors="pt"), class_name="metal nut")
    ```
    """

    config: ClipAnomalyDetectionConfig
    config_class = ClipAnomalyDetectionConfig
    method_name = "CLIP"

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, hidden_states: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compute the embeddings of images and patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`): the images.

        Returns:
            `tuple`: image embeddings of shape `(batch_size, projection_dim)` and patch embeddings of shape
            `(batch_size, num_patches, projection_dim)`, projected, not normalized.

        Raises:
            ValueError: if the images have another shape.
        """
        hidden = self.states_for(pixel_values, hidden_states)[-1]  # (B, 1 + P, width)
        projected = self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden))  # (B, 1 + P, D)
        return projected[:, 0], projected[:, 1:]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        class_name: str | None = None,
        hidden_states: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClipAnomalyDetectionOutput | tuple:
        """
        Compute scores and anomaly maps.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`):
                Images from [`ViP2ClipImageProcessor`].
            text_embeds (`torch.FloatTensor` of shape `(2, projection_dim)`, *optional*):
                Result of `get_text_embeds`, to compute it once for many images.
            class_name (`str`, *optional*):
                Name of the class in the prompts. By default, `config.class_name`.
            hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
                Result of `encode_layers`, instead of `pixel_values`.
            kwargs:
                `return_dict`, as in other models.

        Returns:
            [`ClipAnomalyDetectionOutput`] or `tuple`: scores and maps.

        Raises:
            ValueError: if the images have another shape, or text embeddings and a class are passed.
        """
        text = self.text_embeds_for(text_embeds, class_name)  # (2, D)
        image, patches = self.get_image_features(pixel_values, hidden_states)
        with without_autocast(self.device.type):
            text, image, patches = (F.normalize(upcast(one), dim=-1) for one in (text, image, patches))
            factor = self.clip.logit_scale.exp() if self.config.logit_scale is None else self.config.logit_scale
            logits = factor * image @ text.T  # (B, 2)
            grid = self.config.patch_grid
            patch_logits = (factor * patches @ text.T).mT.unflatten(-1, (grid, grid))  # (B, 2, g, g)
            return ClipAnomalyDetectionOutput(
                scores=logits.softmax(dim=-1)[:, 1],
                anomaly_maps=self.draw_maps(patch_logits),
                logits=logits,
                patch_logits=patch_logits,
                text_embeds=text,
                image_embeds=image,
            )

    def draw_maps(self, patch_logits: torch.Tensor) -> torch.Tensor:
        """
        Turn the logits of patches into maps.

        Args:
            patch_logits (`torch.FloatTensor` of shape `(batch_size, 2, grid, grid)`): logits [normal, anomalous].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, image_size, image_size)`: the maps, in [0, 1].
        """
        size, sigma = self.config.side, float(self.config.smoothing_sigma)
        if self.config.map_order == "probabilities":
            return resize_maps(patch_logits.softmax(dim=1)[:, 1], size, sigma)  # (B, S, S)
        resized = F.interpolate(patch_logits, size=(size, size), mode="bilinear", align_corners=True)
        maps = resized.softmax(dim=1)[:, 1]  # (B, S, S)
        return resize_maps(maps, size, sigma) if sigma else maps


__all__ = ["ClipAnomalyDetectionOutput", "ClipForAnomalyDetection"]
