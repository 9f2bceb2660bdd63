"""Thresholds from labelled images: the best F1, or a wanted recall."""

import datetime
import math
from typing import Any

import numpy as np
from PIL import Image

from ..models.vip2clip.image_loading_vip2clip import load_mask
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .calibration import Calibration
from .scores import decision_maps


# Map values of any number of pixels are counted in so many steps.
_BINS = 65_536


def calibrate_labelled(
    detector: AnomalyDetectionPipeline,
    dataset: Any,
    *,
    recall: float | None = None,
    mask_threshold: int | float = 0,
    progress: bool = False,
) -> Calibration:
    """
    Thresholds from labelled images: those of the best F1, or the largest that find a wanted share.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Made with the options it will be used with.
        dataset (`datasets.Dataset`):
            As `load_folder` gives it, with normal and anomalous images. Masks, where there are any, give the pixel
            threshold; without any it stays as it is.
        recall (`float`, *optional*):
            Share of anomalous images, and of anomalous pixels, to find at least, in (0, 1]. Without it the best F1.
        mask_threshold (`int` or `float`, defaults to 0):
            Mask values greater than this are anomalous.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Raises:
        ValueError: labels missing or of one kind only, or a recall outside (0, 1].
    """
    from ..data.collator import undecoded
    from ..evaluation.metrics import AnomalyMetrics

    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; expected a share in (0, 1].")
    labels = np.asarray([-1 if label is None else label for label in dataset["label"]])
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(
            f"The data set has {(labels == 0).sum()} normal and {(labels == 1).sum()} anomalous images, and "
            f"{(labels < 0).sum()} without a label; expected normal and anomalous ones, all with labels."
        )
    rows = undecoded(dataset)
    metrics, scores, unreadable = AnomalyMetrics(), [], {}
    marked_values = np.zeros(_BINS, dtype=np.int64)
    found = decision_maps(detector, (rows[number]["image"] for number in range(len(rows))), unreadable, progress)
    for number, (_, result) in enumerate(found):
        if unreadable:
            break
        anomaly_map, mask = result["anomaly_map"], rows[number]["mask"]
        marked = _mask_like(mask, anomaly_map, mask_threshold)
        has_mask = mask is not None or not labels[number]
        metrics.update(
            np.array([result["score"]]), labels[number : number + 1], anomaly_map[None], marked[None],
            has_mask=np.array([has_mask]),
        )  # fmt: skip
        scores.append(result["score"])
        # In float64, where the product is exact: no value is counted above where it is.
        steps = anomaly_map[marked].astype(np.float64) * (_BINS - 1)
        marked_values += np.bincount(steps.astype(np.int64), minlength=_BINS)
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        raise OSError(f"{name} could not be read: {reason}")
    pixel_threshold = detector.model.config.pixel_threshold
    if recall is None:
        best = metrics.compute()["categories"]["all"]
        image_threshold = _just_below(best["image_f1_threshold"])
        if np.isfinite(best["pixel_f1_threshold"]):
            pixel_threshold = _just_below(best["pixel_f1_threshold"])
    else:
        anomalous = np.sort(np.asarray(scores)[labels == 1])[::-1]
        image_threshold = _just_below(anomalous[_needed(recall, len(anomalous)) - 1])
        if marked_values.any():
            beyond = np.cumsum(marked_values[::-1])[::-1]  # with values in this bin or above
            last = np.flatnonzero(beyond >= _needed(recall, int(marked_values.sum())))[-1]
            pixel_threshold = _just_below(last / (_BINS - 1))
    content = {
        "method": "f1" if recall is None else "recall",
        **({} if recall is None else {"recall": float(recall)}),
        "date": datetime.date.today().isoformat(),
        "settings": detector.score_settings(),
        "image": {
            "num_images": len(labels), "num_anomalous": int(labels.sum()), "threshold": image_threshold,
        },
        "pixel": {"num_images": len(labels), "threshold": pixel_threshold},
    }  # fmt: skip
    return Calibration(content)


def _mask_like(mask: Any, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """A mask at the size of a map, as the image processor does it; nothing marked where there is none."""
    if mask is None:
        return np.zeros(anomaly_map.shape, dtype=bool)
    marked = Image.fromarray((load_mask(mask) > threshold).astype(np.uint8) * 255)
    return np.asarray(marked.resize(anomaly_map.shape[::-1], Image.Resampling.BILINEAR)) > 127.5


def _just_below(value: float) -> float:
    """A threshold that the value exceeds, and the next smaller one (in float32) does not."""
    return float(max(0.0, np.nextafter(np.float32(value), np.float32(0))))


def _needed(share: float, count: int) -> int:
    return max(1, math.ceil(share * count - 1e-9))


__all__ = ["calibrate_labelled"]
