"""Keep features of the frozen backbone in memory, to evaluate several models on the same images."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from PIL import Image

from ..inference.detector import ViP2ClipDetector


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


class RememberingDetector:
    """
    A [`ViP2ClipDetector`] that computes the features of an image once for all models with the same backbone.

    Use it without workers: each worker would have a memory of its own.

    Args:
        detector ([`ViP2ClipDetector`]): the detector, zero-shot.
        memory ([`FeatureMemory`]): the memory, of models with the same backbone only.
    """

    def __init__(self, detector: ViP2ClipDetector, memory: FeatureMemory) -> None:
        self.detector, self.memory = detector, memory
        self.name, self.image_size = detector.name, detector.image_size
        config = detector.model.config
        self._settings = repr([getattr(config, field) for field in _FIELDS])

    def prepare(self, images: Sequence[Image.Image]) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Return a key for each image, and the pixel values of those that are not in the memory."""
        keys = [self._key(image) for image in images]
        missing = {key: image for key, image in zip(keys, images) if key not in self.memory}
        return keys, {key: self.detector.prepare([image]) for key, image in missing.items()}

    def score(self, batch: tuple[list[str], dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Score a batch, see [`ViP2ClipDetector`]."""
        (keys, pixels), model = batch, self.detector.model
        pixels = {key: values for key, values in pixels.items() if key not in self.memory}
        found = {key: self.memory.get(key) for key in keys if key not in pixels}
        with torch.inference_mode():
            if pixels:
                values = torch.cat(list(pixels.values())).to(model.device)
                features = model.get_image_features(values, return_dict=True)
                for key, image, patches in zip(pixels, features.image_embeds, features.patch_embeds):
                    found[key] = image, patches
                    self.memory.add(key, image, patches)
            image_embeds, patch_embeds = (
                torch.stack([found[key][part].to(model.device) for key in keys]) for part in (0, 1)
            )
            outputs = model(image_embeds=image_embeds, patch_embeds=patch_embeds, references=None)
        return outputs.scores, outputs.anomaly_maps

    def _key(self, image: Image.Image) -> str:
        header = f"{self._settings} {image.mode} {image.size} ".encode()
        return hashlib.sha256(header + image.tobytes()).hexdigest()


__all__ = ["FeatureMemory", "RememberingDetector"]
