"""Thresholds from the scores of photos of good parts.

Each reference is scored with the other references only, like a new photo. The threshold for a rate R is the r-th
largest of these k scores, with the r of split conformal prediction. A new photo is compared with all references, one
more than in each of these scores. Its distances to them are therefore smaller or equal, and it exceeds the threshold
at most as often as with the jackknife+ (Barber et al., arXiv:1905.02928), whose guarantee carries over: at most 2 R of
new good photos are called anomalous in the worst case, and about R in practice. The weight of the zero-shot score,
which is computed from all references, is taken as given, and so are the offsets of aligned photos.

Photos that are not references give split conformal thresholds: at most R, without the factor of two.
"""

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..calibration.rates import alarms_allowed
from ..calibration.scores import decision_settings
from ..models.vip2clip.decision_config_vip2clip import MAX_PIXEL_SCORES, DecisionConfig, stored_scores
from ..models.vip2clip.decision_vip2clip import conformal_threshold
from ..models.vip2clip.fingerprint_vip2clip import model_fingerprint
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline


def conformal_decision(
    detector: AnomalyDetectionPipeline,
    scores: Mapping[str, float],
    peaks: Mapping[str, float],
    false_alarm_rate: float,
    left_out: bool,
    default_rate: bool,
) -> DecisionConfig:
    """
    Compute thresholds for a false-alarm rate.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline, with the references.
        scores, peaks (`Mapping[str, float]`): score, and largest value of the anomaly map, by name.
        false_alarm_rate (`float`): false-alarm rate, in (0, 1).
        left_out (`bool`): whether the photos are the references.
        default_rate (`bool`): whether the caller has not chosen the rate.

    Returns:
        [`DecisionConfig`]: the thresholds.
    """
    return _decision(
        detector,
        conformal_threshold(list(scores.values()), false_alarm_rate),
        conformal_threshold(list(peaks.values()), false_alarm_rate),
        scores,
        peaks,
        {
            "method": "conformal",
            "false_alarm_rate": float(false_alarm_rate),
            "default_rate": default_rate,
            "leave_one_out": left_out,
        },
    )


def labelled_decision(
    detector: AnomalyDetectionPipeline,
    image_threshold: float,
    pixel_threshold: float,
    scores: Mapping[str, float],
    peaks: Mapping[str, float],
    false_alarm_rate: float,
    default_rate: bool,
    num_anomalous: int,
    miss_cost: float | None,
    num_masks: int = 0,
) -> DecisionConfig:
    """
    Combine an image threshold that was chosen with photos of defects with a pixel threshold.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline, with the references.
        image_threshold, pixel_threshold (`float`): the thresholds, in [0, 1].
        scores, peaks (`Mapping[str, float]`): of the references, as in [`conformal_decision`].
        false_alarm_rate (`float`), default_rate (`bool`): of the pixel threshold, as in [`conformal_decision`].
        num_anomalous (`int`): number of photos of defects.
        miss_cost (`float`, *optional*): cost of a missed defect relative to a false alarm, if it was used.
        num_masks (`int`, defaults to 0): number of masks that chose the pixel threshold. 0 if it is that of the rate.

    Returns:
        [`DecisionConfig`]: the thresholds.
    """
    origin: dict[str, Any] = {"method": "f1"} if miss_cost is None else {"method": "cost", "miss_cost": miss_cost}
    origin.update(false_alarm_rate=float(false_alarm_rate), default_rate=default_rate)
    origin.update(num_anomalous=num_anomalous, leave_one_out=True)
    if num_masks:
        origin["num_masks"] = num_masks
    return _decision(detector, image_threshold, pixel_threshold, scores, peaks, origin)


def _decision(
    detector: AnomalyDetectionPipeline,
    image_threshold: float,
    pixel_threshold: float,
    scores: Mapping[str, float],
    peaks: Mapping[str, float],
    origin: Mapping[str, Any],
) -> DecisionConfig:
    calibration = {
        **origin,
        "date": datetime.date.today().isoformat(),
        "num_images": len(scores),
        "settings": detector.score_settings(),
        "fingerprint": model_fingerprint(detector.model),
    }
    return DecisionConfig(
        image_threshold,
        pixel_threshold,
        calibration=calibration,
        image_scores=np.asarray(stored_scores(list(scores.values()))),
        pixel_scores=np.asarray(stored_scores(list(peaks.values()), MAX_PIXEL_SCORES)),
        **decision_settings(detector),
    )


def deciding_photos(values: Mapping[str, float], false_alarm_rate: float) -> list[str]:
    """
    Find the photos that determine a threshold.

    Args:
        values (`Mapping[str, float]`): score by name.
        false_alarm_rate (`float`): false-alarm rate of the threshold.

    Returns:
        `list[str]`: the photo whose score is the threshold, and those with larger scores, in descending order.
    """
    ordered = sorted(values, key=lambda name: -values[name])
    return ordered[: alarms_allowed(len(values), false_alarm_rate)]


__all__ = [
    "conformal_decision",
    "deciding_photos",
    "labelled_decision",
]
