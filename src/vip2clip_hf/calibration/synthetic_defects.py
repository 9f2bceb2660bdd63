"""Scores of photos with synthetic defects, as a rough estimate of the detection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..models.vip2clip.decision_vip2clip import region_score
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.pictures import resized_map
from .pasting import DEFECTS, paste_defect


# Length of a defect, as a fraction of the shorter side of the photo.
SIZES = (0.04, 0.2)
MAX_PHOTOS = 24
# Largest side of the photos that are kept, in pixels.
SIDE = 320


@dataclass
class SyntheticDefect:
    """
    A photo with a synthetic defect, and its scores.

    Args:
        name (`str`): name of the photo.
        defect (`str`): one of `DEFECTS`.
        size (`float`): length of the defect, as a fraction of the shorter side of the photo.
        score (`float`): score of the photo, in [0, 1].
        peak (`float`): largest value of the anomaly map in the defect, in [0, 1].
        image (`PIL.Image.Image`): the photo with the defect, at most 320 pixels wide and high.
        anomaly_map (`np.ndarray` of shape `(height, width)`): its anomaly map at this size, in [0, 1].
    """

    name: str
    defect: str
    size: float
    score: float
    peak: float
    image: Image.Image
    anomaly_map: np.ndarray


def score_synthetic_defects(
    photos: Sequence[tuple[str, Any]], detector_of: Callable[[str], AnomalyDetectionPipeline], seed: int = 0
) -> list[SyntheticDefect]:
    """
    Score photos with synthetic defects.

    Args:
        photos (`Sequence[tuple[str, Any]]`): name and source of each photo to change, in any form that the pipeline
            accepts.
        detector_of (`Callable[[str], AnomalyDetectionPipeline]`): returns the pipeline that scores the photo of a
            name, such as one that does not compare it with itself.
        seed (`int`, defaults to 0): seed of the defects.

    Returns:
        `list[SyntheticDefect]`: at most 24 photos.

    Raises:
        OSError: if a photo cannot be read.
    """
    found = []
    count = min(MAX_PHOTOS, 4 * len(photos))
    for index in range(count):
        name, source = photos[index * len(photos) // count if len(photos) > count else index % len(photos)]
        # Every kind of defect in all sizes.
        rng, (turn, kind) = np.random.default_rng([seed, index]), divmod(index, len(DEFECTS))
        place = (turn + rng.uniform()) / -(-count // len(DEFECTS))
        defect, size = DEFECTS[kind], float(SIZES[0] + place * (SIZES[1] - SIZES[0]))
        detector = detector_of(name)
        image, mask = paste_defect(rng, detector.load(source), defect, size)
        result = detector.decision_map(image)
        anomaly_map = result["anomaly_map"]
        peak = region_score(np.where(_resized(mask, anomaly_map.shape), anomaly_map, 0))
        # Photos can be large, and 24 of them are kept.
        image.thumbnail((SIDE, SIDE))
        shown = resized_map(anomaly_map, image.size)
        found.append(SyntheticDefect(name, defect, size, result["score"], peak, image, shown))
    return found


def _resized(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize a mask so that no marked pixel is lost."""
    resized = np.zeros(shape, dtype=bool)
    places = (2 * np.argwhere(mask) + 1) * shape // (2 * np.array(mask.shape))
    resized[tuple(places.T)] = True
    return resized


__all__ = ["MAX_PHOTOS", "SIZES", "SyntheticDefect", "score_synthetic_defects"]
