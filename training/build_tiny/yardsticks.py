"""Yardsticks of the study: a detector that needs no training."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy import ndimage


class LocalContrast:
    """
    A trivial detector, see [`Detector`].

    The anomaly map is the smoothed absolute difference between a pixel and the mean of its neighbourhood. The image
    score is the maximum of the map.

    Args:
        image_size (`int`): side of the images and maps in pixels.
    """

    name = "local contrast"

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return gray images of shape `(batch_size, image_size, image_size)`, float32 in [0, 1]."""
        size = (self.image_size, self.image_size)
        gray = [np.asarray(image.convert("L").resize(size), dtype=np.float32) / 255 for image in images]
        return torch.from_numpy(np.stack(gray))

    def score(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores of shape `(batch_size,)` and maps of shape `(batch_size, image_size, image_size)`."""
        maps = torch.from_numpy(np.stack([self._contrast(gray) for gray in batch.numpy()]))
        return maps.flatten(1).amax(dim=1), maps

    def _contrast(self, gray: np.ndarray) -> np.ndarray:
        difference = abs(gray - ndimage.uniform_filter(gray, self.image_size // 6))
        return ndimage.gaussian_filter(difference, self.image_size / 64)
