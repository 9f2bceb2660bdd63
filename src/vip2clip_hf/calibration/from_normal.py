"""Thresholds with a known false-alarm rate, from normal images only.

`decision_vip2clip.py` contains the formulas and their guarantee.
"""

import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from ..models.vip2clip.decision_config_vip2clip import MAX_PIXEL_SCORES, DecisionConfig, stored_scores
from ..models.vip2clip.decision_vip2clip import (
    conformal_threshold,
    min_calibration_images,
    min_region_pixels,
    region_score,
)
from ..models.vip2clip.fingerprint_vip2clip import model_fingerprint
from ..models.vip2clip.image_loading_vip2clip import list_images
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .calibration import Calibration
from .rates import choose_rate
from .scores import decision_maps, decision_settings


logger = logging.get_logger(__name__)
# An image looks anomalous if the logit of its score exceeds the median by more than this many (robust) standard
# deviations.
SUSPICIOUS = 5.0


def calibrate(
    detector: AnomalyDetectionPipeline,
    normal: str | os.PathLike | Iterable[Any],
    false_alarm_rate: float | None = 0.01,
    *,
    min_region_area: float = 0.0,
    progress: bool = False,
) -> Calibration:
    """
    Choose thresholds from normal images by split conformal prediction.

    On new normal images that are exchangeable with the calibration images, the rate of images classified as anomalous
    is at most `false_alarm_rate`. So is the rate of images with any region in the mask. Each bound holds separately,
    on average over draws of the calibration images. Images that are among the references of the detector are left out,
    with a warning.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Pipeline, with the options you will use it with (`tile_size`, `top_k`, ...). It is not changed.
        normal (`str`, `os.PathLike` or iterable):
            Normal images not used for training or model selection: a folder, or an iterable of images in any form that
            the pipeline accepts.
        false_alarm_rate (`float`, *optional*, defaults to 0.01):
            Maximum fraction of normal images classified as anomalous, in (0, 1). `None` is 0.05, or the smallest
            possible rate for fewer than 19 images.
        min_region_area (`float`, defaults to 0.0):
            Minimum area of a region, as a fraction of the image, in [0, 1). Smaller regions are removed from the mask.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`Calibration`]: the thresholds. Call `calibration.apply(detector.model)` to use them, or
        [`save_calibration`] to write them to a checkpoint.

    Raises:
        ImportError: if scipy is not installed and `min_region_area` is greater than 0.
        OSError: if the folder cannot be read.
        ValueError: if there are too few images for the rate (the message contains the required number), if the rate is
            outside (0, 1), if the area is outside [0, 1), or if `normal` is a file.
    """
    needed = 1 if false_alarm_rate is None else min_calibration_images(false_alarm_rate)
    if not 0 <= min_region_area < 1:
        raise ValueError(f"min_region_area is {min_region_area}; expected a fraction of the image in [0, 1).")
    images = list_images(normal) if isinstance(normal, (str, os.PathLike)) and os.path.isdir(normal) else normal
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(f"{str(images)!r} is not a folder; expected a folder of at least {needed} normal images.")
    if isinstance(images, Sequence) and false_alarm_rate is not None and len(images) < needed:
        conformal_threshold([0.0] * len(images), false_alarm_rate)  # raises now, not after hours of work

    names: list[str] = []
    scores: list[float] = []
    peaks: list[float] = []
    unreadable: dict[str, str] = {}
    for name, result in decision_maps(detector, images, unreadable, progress):
        names.append(name)
        scores.append(result["score"])
        pixels = min_region_pixels(result["anomaly_map"].shape, min_region_area)
        peaks.append(region_score(result["anomaly_map"], pixels))
    for name, reason in unreadable.items():
        logger.warning(f"Skipped in the calibration: {name}: {reason}")
    default_rate = false_alarm_rate is None
    if false_alarm_rate is None:
        if not scores:
            raise ValueError("None of the normal images can be used; expected at least 1.")
        false_alarm_rate = choose_rate(len(scores), None, logger.warning)
    image_threshold = conformal_threshold(scores, false_alarm_rate)
    pixel_threshold = conformal_threshold(peaks, false_alarm_rate)
    suspicious = _suspicious(names, scores)
    if suspicious:
        logger.warning(
            f"{len(suspicious)} of {len(scores)} calibration images look anomalous: {', '.join(suspicious[:10])}"
            f"{', ...' if len(suspicious) > 10 else ''}. Check them: anomalous images raise the threshold."
        )
    calibration = {
        "method": "conformal",
        "false_alarm_rate": float(false_alarm_rate),
        "default_rate": default_rate,
        "date": datetime.date.today().isoformat(),
        "num_images": len(scores),
        "settings": detector.score_settings(),
        "fingerprint": model_fingerprint(detector.model),
    }
    decision = DecisionConfig(
        image_threshold,
        pixel_threshold,
        float(min_region_area),
        calibration=calibration,
        image_scores=np.asarray(stored_scores(scores)),
        pixel_scores=np.asarray(stored_scores(peaks, MAX_PIXEL_SCORES)),
        **decision_settings(detector),
    )
    return Calibration(decision, suspicious, unreadable)


def _suspicious(names: list[str], scores: list[float]) -> list[str]:
    """Return the names of images that look anomalous, in descending order of their scores."""
    values = np.clip(np.asarray(scores, dtype=np.float64), 1e-6, 1 - 1e-6)
    logits = np.log(values / (1 - values))
    median = np.median(logits)
    deviation = max(1.4826 * float(np.median(abs(logits - median))), 0.1)  # estimated from the median deviation
    distances = (logits - median) / deviation
    return [names[index] for index in np.argsort(-distances, kind="stable") if distances[index] > SUSPICIOUS]


__all__ = ["calibrate"]
