"""Keep features of the frozen backbone in memory, to evaluate several models on the same images."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..inference.detector import ViP2ClipDetector
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


# Fields of the configuration that affect the features.
_FIELDS = ("image_size", "feature_layers", "image_embeds_layernorm", "position_interpolation")


class FeatureMemory:
    """
    Features of images, in float32 as the backbone computes them, so results do not change.

    Args:
        max_bytes (`int`): size from which the oldest features are dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._features: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._features

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image embedding and patch embeddings of an image, on the CPU."""
        self._features.move_to_end(key)
        return self._features[key]

    def add(self, key: str, image_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> None:
        """Add the features of an image."""
        if key in self._features:
            return
        found = image_embeds.cpu().clone(), patch_embeds.cpu().clone()
        self._features[key] = found
        self.num_bytes += _bytes(found)
        while self.num_bytes > self.max_bytes and len(self._features) > 1:
            self.num_bytes -= _bytes(self._features.popitem(last=False)[1])


def _bytes(features: tuple[torch.Tensor, torch.Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in features)


class RememberingDetector(ViP2ClipDetector):
    """
    A [`ViP2ClipDetector`] that computes the features of an image once for all models with the same backbone.

    Use it without workers: each worker would have a memory of its own.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.
        memory ([`FeatureMemory`]): the memory, of models with the same backbone only.
        name (`str`): name of the detector.
    """

    def __init__(
        self,
        model: ViP2ClipForAnomalyDetection,
        image_processor: ViP2ClipImageProcessor,
        memory: FeatureMemory,
        *,
        name: str = "ViP²-CLIP",
    ) -> None:
        super().__init__(model, image_processor, name=name)
        self.memory = memory
        self._pixels, self.prepare = self.prepare, self._prepare
        self._settings = repr([getattr(model.config, field) for field in _FIELDS])

    def _prepare(self, images: Sequence[Image.Image]) -> tuple[list[str], Any]:
        """Return a key for each image, and the pixel values of those that are not in the memory."""
        keys = [self._key(image) for image in images]
        missing = {key: image for key, image in zip(keys, images) if key not in self.memory}
        return keys, {key: self._pixels([one]) for key, one in missing.items()}

    def score(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score a batch, see [`ViP2ClipDetector`]."""
        keys, pixels = batch
        found = {key: self.memory.get(key) for key in keys if key not in pixels}
        if pixels:
            values = torch.cat(list(pixels.values())).to(self.model.device)
            features = self.model.get_image_features(values, return_dict=True)
            for key, image, patches in zip(pixels, features.image_embeds, features.patch_embeds):
                found[key] = image, patches
                self.memory.add(key, image, patches)
        image_embeds, patch_embeds = (
            torch.stack([found[key][part].to(self.model.device) for key in keys]) for part in (0, 1)
        )
        outputs = self.model(image_embeds=image_embeds, patch_embeds=patch_embeds, references=None)
        return outputs.scores, outputs.anomaly_maps

    def _key(self, image: Image.Image) -> str:
        header = f"{self._settings} {image.mode} {image.size} ".encode()
        return hashlib.sha256(header + image.tobytes()).hexdigest()


__all__ = ["FeatureMemory", "RememberingDetector"]
