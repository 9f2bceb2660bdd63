"""How many defects a detector finds at its threshold, and what would help it to find more."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import logging

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.reference_records_vip2clip import photo_hash
from .calibration import Calibration
from .rates import detection_interval
from .synthetic_defects import SIZES, SyntheticDefect, score_synthetic_defects


logger = logging.get_logger(__name__)
# Where the defects come from.
SYNTHETIC, PHOTOS, CROSS_VALIDATION, SAME_PHOTOS = "synthetic", "photos", "cross-validation", "same photos"
# Below this rate, say what would help.
GOOD_RATE = 0.8
# Fewer good photos than this are few: a threshold from more of them, and a comparison with more, is better.
FEW_PHOTOS = 50
# The width of the vision tower of CLIP ViT-B. Smaller ones see less.
SMALL_WIDTH = 768


@dataclass(frozen=True)
class Detection:
    """
    How many photos of defects are called anomalous at the image threshold.

    Args:
        method (`str`):
            Where the defects come from: `"synthetic"` (pasted into photos of good parts), `"photos"` (photos of
            defects that chose nothing), `"cross-validation"` (photos of defects, each tested with thresholds chosen on
            others) or `"same photos"` (those the thresholds were chosen from, which is too optimistic).
        num_photos, num_found (`int`):
            Number of photos of defects, and of those called anomalous.
        sizes (`list[dict[str, Any]]`):
            Of synthetic defects, by length as a fraction of the shorter side: `least`, `below`, `num_photos` and
            `num_found`.
    """

    method: str
    num_photos: int
    num_found: int
    sizes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Fraction of the photos of defects that are found, in [0, 1]."""
        return self.num_found / self.num_photos

    @property
    def interval(self) -> tuple[float, float] | None:
        """
        Range that contains the true rate with a probability of 90 %, if the photos are a random sample of the defects.
        `None` for synthetic defects, which are no sample of yours, and for photos that chose the thresholds.
        """
        if self.method not in (PHOTOS, CROSS_VALIDATION):
            return None
        return detection_interval(self.num_found, self.num_photos)

    @property
    def is_poor(self) -> bool:
        """Whether fewer than 80 % are found. Of synthetic defects, those in the upper half of the lengths count."""
        if self.sizes:
            last = self.sizes[-1]
            return last["num_found"] < GOOD_RATE * last["num_photos"]
        return self.rate < GOOD_RATE

    @classmethod
    def of_synthetic(cls, found: Sequence[SyntheticDefect], image_threshold: float) -> "Detection":
        """
        Count synthetic defects.

        Args:
            found (`Sequence[SyntheticDefect]`): photos with synthetic defects, at least one.
            image_threshold (`float`): the image threshold, in [0, 1].

        Returns:
            [`Detection`]: the counts, by length in two halves.
        """
        middle, sizes = sum(SIZES) / 2, []
        for least, below in ((SIZES[0], middle), (middle, SIZES[1])):
            scores = [one.score for one in found if least <= one.size < below]
            count = sum(score > image_threshold for score in scores)
            sizes.append({"least": least, "below": below, "num_photos": len(scores), "num_found": count})
        sizes = [size for size in sizes if size["num_photos"]]
        return cls(SYNTHETIC, len(found), sum(one.score > image_threshold for one in found), sizes)

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to a dict that can be saved as JSON.

        Returns:
            `dict[str, Any]`: the fields, `rate` and `interval`.
        """
        interval = self.interval
        found: dict[str, Any] = {"method": self.method, "num_photos": self.num_photos, "num_found": self.num_found}
        found.update(rate=self.rate, interval=None if interval is None else list(interval))
        return {**found, "sizes": self.sizes} if self.sizes else found

    def describe(self) -> str:
        """
        Describe the detection in one line.

        Returns:
            `str`: one or two sentences.
        """
        counts = f"{self.num_found} of {self.num_photos}"
        if self.method == SYNTHETIC:
            parts = ", ".join(
                f"{size['num_found']} of {size['num_photos']} with a length of {100 * size['least']:.0f} to "
                f"{100 * size['below']:.0f} % of the side"
                for size in self.sizes
            )
            return (
                f"Rough estimate of the detection: {counts} photos with a synthetic defect are called anomalous "
                f"({parts}). Your defects can be easier or harder to find; measure them with --defects."
            )
        interval = self.interval
        if interval is None:
            return (
                f"Detection: {counts} photos of defects are found ({100 * self.rate:.0f} %). The thresholds were "
                "chosen from the same photos, so expect less on new ones."
            )
        low, high = (100 * end for end in interval)
        how = ", by cross-validation" if self.method == CROSS_VALIDATION else ""
        return (
            f"Detection: {counts} photos of defects are found{how} ({100 * self.rate:.0f} %). The true rate lies "
            f"between {low:.0f} and {high:.0f} % with a probability of 90 %, if they are a random sample."
        )


def estimate_detection(
    detector: AnomalyDetectionPipeline,
    calibration: Calibration,
    good_photos: Iterable[Any] = (),
    *,
    defects: Iterable[Any] | None = None,
    seed: int = 0,
) -> Detection | None:
    """
    Estimate how many defects are found at the image threshold of a calibration, and store it in the calibration.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            The pipeline that was calibrated.
        calibration ([`Calibration`]):
            The calibration. Its `detection`, and the entry `detection` of `decision.calibration`, are set.
        good_photos (`Iterable`):
            Photos of good parts that were not used for training, in any form that the pipeline accepts. Defects are
            pasted into at most 24 of them. Not used if `defects` are given.
        defects (`Iterable`, *optional*):
            Photos of defects that were not used for training and did not choose the thresholds.
        seed (`int`, defaults to 0):
            Seed of synthetic defects.

    Returns:
        [`Detection`], *optional*: the estimate. `None` if there are no photos.

    Raises:
        ValueError: if none of the `defects` can be read.

    Example:

    ```python
    >>> from vip2clip_hf import AnomalyDetectionPipeline, calibrate, estimate_detection

    >>> detector = AnomalyDetectionPipeline.from_pretrained("path/to/checkpoint")
    >>> calibration = calibrate(detector, "good", false_alarm_rate=0.05)
    >>> found = estimate_detection(detector, calibration, ["good/1.jpg", "good/2.jpg"])
    >>> print(found.describe())
    ```
    """
    threshold = calibration.image_threshold
    if defects is not None:
        scores, reason = [], "there are none"
        for photo in defects:
            try:
                scores.append(detector.decision_map(detector.load(photo))["score"])
            except (OSError, ValueError) as error:
                name = os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else "a photo of a defect"
                calibration.unreadable[name] = reason = str(error)
        if not scores:
            raise ValueError(f"No photo of a defect can be used: {reason}")
        found = Detection(PHOTOS, len(scores), sum(score > threshold for score in scores))
    else:
        readable = [photo for photo in good_photos if _name(photo) not in calibration.unreadable]
        if detector.references is not None:  # their scores are lower than those of other photos
            known = {photo.sha256 for photo in detector.references.photos}
            readable = [photo for photo in readable if photo_hash(detector.load(photo)) not in known]
        if not readable:
            return None
        pairs = [(str(number), photo) for number, photo in enumerate(readable)]
        found = Detection.of_synthetic(score_synthetic_defects(pairs, lambda name: detector, seed), threshold)
    calibration.detection = found
    calibration.decision.calibration = {**(calibration.decision.calibration or {}), "detection": found.to_dict()}
    return found


def _name(photo: Any) -> str | None:
    return os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else None


def advice(
    detection: Detection | None,
    model: Any,
    *,
    num_good: int,
    has_references: bool,
    tile_size: int,
    photo_side: int | None,
) -> str | None:
    """
    Say what would help to find more defects.

    Args:
        detection ([`Detection`], *optional*): how many are found.
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        num_good (`int`): number of photos of good parts.
        has_references (`bool`): whether photos are compared with photos of good parts.
        tile_size (`int`): side of the tiles, 0 without tiles.
        photo_side (`int`, *optional*): shorter side of the photos in pixels, if it is known.

    Returns:
        `str`, *optional*: one line. `None` if detection is good or unknown.
    """
    if detection is None or not detection.is_poor:
        return None
    side, width = model.config.image_size, model.config.clip_config.vision_config.hidden_size
    found = []
    if not has_references:
        found.append("compare with photos of good parts (vip2clip adapt)")
    if num_good < FEW_PHOTOS:
        found.append(f"use more photos of good parts (now {num_good})")
    if photo_side is not None and not tile_size and photo_side >= 2 * side:
        found.append(f"split the photos into tiles for small defects (--tile-size {max(side, photo_side // 3)})")
    if width < SMALL_WIDTH:
        found.append("use a checkpoint on CLIP ViT-L/14 (--model)")
    if detection.method == SYNTHETIC:
        found.append("choose the threshold with photos of defects (vip2clip adapt --defects)")
    else:
        found.append("train on photos of defects (vip2clip train)")
    return f"Many defects are missed. To find more: {'; '.join(found)}."


__all__ = ["CROSS_VALIDATION", "PHOTOS", "SAME_PHOTOS", "SYNTHETIC", "Detection", "advice", "estimate_detection"]
