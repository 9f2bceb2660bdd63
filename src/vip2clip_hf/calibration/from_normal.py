"""Thresholds with a known false-alarm rate, from normal images alone.

The guarantee and its formulas are in `decision_vip2clip.py`.
"""

import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from ..models.vip2clip.decision_vip2clip import (
    conformal_threshold,
    min_calibration_images,
    min_region_pixels,
    region_score,
    stored_scores,
)
from ..models.vip2clip.image_loading_vip2clip import list_images
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .calibration import Calibration
from .scores import decision_maps


logger = logging.get_logger(__name__)
# Normal images whose score lies this many times the usual spread above the middle, on the scale of logits, look
# anomalous.
SUSPICIOUS = 5.0


def calibrate(
    detector: AnomalyDetectionPipeline,
    normal: str | os.PathLike | Iterable[Any],
    false_alarm_rate: float = 0.01,
    *,
    min_region_area: float = 0.0,
    progress: bool = False,
) -> Calibration:
    """
    Thresholds from normal images by split conformal prediction: on normal images like these (exchangeable with them)
    the rate of images called anomalous is at most `false_alarm_rate`, and so is that of images with any region marked
    in the mask. Each of the two holds by itself, on average over draws of the calibration images.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Made with the options it will be used with (`tile_size`, `top_k`, ...); is not changed.
        normal (`str`, `os.PathLike` or iterable):
            Normal images that nothing was trained or chosen on: a folder, or what the pipeline takes.
        false_alarm_rate (`float`, defaults to 0.01):
            In (0, 1).
        min_region_area (`float`, defaults to 0.0):
            Share of the image a region has to cover to count, in [0, 1); smaller ones then do not appear in the mask.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`Calibration`]; `calibration.apply(detector.model.config)` puts it to use, [`save_calibration`] writes it into
        a checkpoint.

    Raises:
        ValueError: too few images for the rate (says how many it needs), a rate outside (0, 1), an area outside
            [0, 1).
        OSError: the folder cannot be read.
    """
    needed = min_calibration_images(false_alarm_rate)
    if not 0 <= min_region_area < 1:
        raise ValueError(f"min_region_area is {min_region_area}; expected a share of the image in [0, 1).")
    images = list_images(normal) if isinstance(normal, (str, os.PathLike)) and os.path.isdir(normal) else normal
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(f"{str(images)!r} is no folder; expected one with at least {needed} normal images.")
    if isinstance(images, Sequence) and len(images) < needed:  # before an hour of work
        conformal_threshold([0.0] * len(images), false_alarm_rate)

    names, scores, peaks, unreadable = [], [], [], {}
    for name, result in decision_maps(detector, images, unreadable, progress):
        names.append(name)
        scores.append(result["score"])
        pixels = min_region_pixels(result["anomaly_map"].shape, min_region_area)
        peaks.append(region_score(result["anomaly_map"], pixels))
    for name, reason in unreadable.items():
        logger.warning(f"Left out of the calibration: {name}: {reason}")
    image_threshold = conformal_threshold(scores, false_alarm_rate)
    pixel_threshold = conformal_threshold(peaks, false_alarm_rate)
    suspicious = _suspicious(names, scores)
    if suspicious:
        logger.warning(
            f"{len(suspicious)} of the {len(scores)} calibration images look anomalous, and raise the threshold if "
            f"they are: {', '.join(suspicious[:10])}{', ...' if len(suspicious) > 10 else ''}. Look at them."
        )
    common = {"num_images": len(scores)}
    content = {
        "method": "conformal",
        "false_alarm_rate": float(false_alarm_rate),
        "date": datetime.date.today().isoformat(),
        "settings": detector.score_settings(),
        "image": {**common, "threshold": image_threshold, "scores": stored_scores(scores)},
        "pixel": {
            **common,
            "threshold": pixel_threshold,
            "min_region_area": float(min_region_area),
            "scores": stored_scores(peaks),
        },
    }
    return Calibration(content, suspicious, unreadable)


def _suspicious(names: list[str], scores: list[float]) -> list[str]:
    values = np.clip(np.asarray(scores, dtype=np.float64), 1e-6, 1 - 1e-6)
    logits = np.log(values / (1 - values))
    middle = np.median(logits)
    spread = max(1.4826 * float(np.median(abs(logits - middle))), 0.1)
    far = (logits - middle) / spread
    return [names[place] for place in np.argsort(-far, kind="stable") if far[place] > SUSPICIOUS]


__all__ = ["calibrate"]
