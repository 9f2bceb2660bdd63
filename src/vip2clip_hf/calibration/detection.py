"""Estimate how many defects a calibrated detector finds."""

import os
from collections.abc import Iterable
from typing import Any

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.reference_records_vip2clip import photo_hash
from .calibration import Calibration
from .detected import PHOTOS, Detection
from .synthetic_defects import score_synthetic_defects


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
    >>> print(*found.describe(), sep="\n")
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


__all__ = ["estimate_detection"]
