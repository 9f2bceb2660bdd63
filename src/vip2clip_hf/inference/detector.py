"""A model as a detector."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


class ViP2ClipDetector:
    """
    ViP²-CLIP as a detector.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.
        name (`str`, defaults to `"ViP²-CLIP"`): name in tables.
    """

    def __init__(
        self, model: ViP2ClipForAnomalyDetection, image_processor: ViP2ClipImageProcessor, *, name: str = "ViP²-CLIP"
    ) -> None:
        self.model, self.image_processor, self.name = model, image_processor, name
        self.image_size: int = model.config.image_size

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        """Prepare RGB photos as pixel values."""
        return self.image_processor(list(images), return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def score(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute scores and maps."""
        outputs = self.model(batch.to(self.model.device, self.model.dtype))
        return outputs.scores, outputs.anomaly_maps


__all__ = ["ViP2ClipDetector"]
