"""Thresholds from labelled images, for the best F1 or a given recall."""

import datetime
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.fingerprint_vip2clip import model_fingerprint
from ..models.vip2clip.mask_loading_vip2clip import mask_labels
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.unreadable import check_unreadable
from .calibration import Calibration
from .detection import SAME_PHOTOS, Detection
from .scores import decision_maps, decision_settings


# Number of bins of the histogram of map values.
_BINS = 65_536


def calibrate_labelled(
    detector: AnomalyDetectionPipeline,
    dataset: Any,
    *,
    recall: float | None = None,
    mask_threshold: int | float | None = None,
    mask_options: MaskOptions | None = None,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> Calibration:
    """
    Choose the thresholds with the best F1, or the largest with a given recall. References are left out with a warning.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Pipeline, with the options you will use it with. It is not changed.
        dataset (`datasets.Dataset`):
            Normal and anomalous images, as returned by [`load_folder`]. The pixel threshold is chosen from the masks;
            if there are no masks, it keeps its value.
        recall (`float`, *optional*):
            Minimum fraction of anomalous images, and of anomalous pixels, to find, in (0, 1]. If not set, the
            thresholds maximize F1.
        mask_threshold, mask_options (*optional*):
            How to read masks, see [`evaluate_model`].
        skip_unreadable (`bool`, defaults to `False`):
            Whether to leave out images and masks that cannot be read, with a warning, instead of an error.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`Calibration`]: the thresholds. Call `calibration.apply(detector.model)` to use them, or
        [`save_calibration`] to write them to a checkpoint.

    Raises:
        ImportError: if scipy or `datasets` are not installed.
        OSError: if images or masks cannot be read. The message lists them.
        ValueError: if a label is missing, if all labels are the same, if the recall is outside (0, 1], or if a mask is
            not valid or differs in size from its image.
    """
    from ..data.collator import resolve_mask_options, undecoded
    from ..data.mask_checks import warn_about_masks
    from ..evaluation.metrics import AnomalyMetrics

    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; expected a number in (0, 1].")
    labels = np.asarray([-1 if label is None else label for label in dataset["label"]])
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(
            f"The dataset contains {(labels == 0).sum()} normal images, {(labels == 1).sum()} anomalous images and "
            f"{(labels < 0).sum()} images without a label; expected normal and anomalous images, all with a label."
        )
    rows = undecoded(dataset)
    options = resolve_mask_options(detector.image_processor, mask_threshold, mask_options)
    warn_about_masks(rows, options)
    metrics = AnomalyMetrics()
    scores: list[float] = []
    unreadable: dict[str, str] = {}
    marked_values = np.zeros(_BINS, dtype=np.int64)
    used: list[int] = []
    current = -1

    def images() -> Iterator[Any]:
        nonlocal current
        for current in range(len(rows)):
            yield rows[current]["image"]

    for name, result in decision_maps(detector, images(), unreadable, progress):
        anomaly_map, row, label = result["anomaly_map"], rows[current], labels[current]
        mask = row["mask"]
        try:
            marked = mask_labels(
                mask, MaskOptions.named(row).over(options), row["image"], size=anomaly_map.shape, position=current
            ).labels.astype(bool)
        except OSError as error:
            unreadable[f"mask of {name}"] = str(error)
            continue
        metrics.update(
            np.array([result["score"]]), labels[current : current + 1], anomaly_map[None], marked[None],
            has_mask=np.array([mask is not None or not label]),
        )  # fmt: skip
        scores.append(result["score"])
        used.append(current)
        # In float64 the product is exact, so no value is rounded up into a higher bin.
        steps = anomaly_map[marked].astype(np.float64) * (_BINS - 1)
        marked_values += np.bincount(steps.astype(np.int64), minlength=_BINS)
    check_unreadable(unreadable, len(rows), skip_unreadable)
    labels = labels[used]
    if set(labels.tolist()) != {0, 1}:
        raise ValueError("All readable images have the same label; expected normal and anomalous images.")
    pixel_threshold = detector.decision.pixel_threshold
    if recall is None:
        best = metrics.compute()["categories"]["all"]
        image_threshold = max(0.0, best["image_f1_threshold"])
        if np.isfinite(best["pixel_f1_threshold"]):
            pixel_threshold = max(0.0, best["pixel_f1_threshold"])
    else:
        anomalous = np.sort(np.asarray(scores)[labels == 1])[::-1]
        image_threshold = _just_below(anomalous[_needed(recall, len(anomalous)) - 1])
        if marked_values.any():
            above = np.cumsum(marked_values[::-1])[::-1]  # pixels in this bin or higher bins
            last = np.flatnonzero(above >= _needed(recall, int(marked_values.sum())))[-1]
            pixel_threshold = _just_below(last / (_BINS - 1))
    calibration = {
        "method": "f1" if recall is None else "recall",
        **({} if recall is None else {"recall": float(recall)}),
        "date": datetime.date.today().isoformat(),
        "num_images": len(labels),
        "num_anomalous": int(labels.sum()),
        "settings": detector.score_settings(),
        "fingerprint": model_fingerprint(detector.model),
    }
    anomalous = np.asarray(scores, dtype=np.float32)[labels == 1]
    detection = Detection(SAME_PHOTOS, len(anomalous), int((anomalous > np.float32(image_threshold)).sum()))
    calibration["detection"] = detection.to_dict()
    decision = DecisionConfig(image_threshold, pixel_threshold, calibration=calibration, **decision_settings(detector))
    return Calibration(decision, unreadable=unreadable, detection=detection)


def _just_below(value: float) -> float:
    """Return the largest float32 threshold that a value exceeds, or 0."""
    return float(max(0.0, np.nextafter(np.float32(value), np.float32(0))))


def _needed(recall: float, count: int) -> int:
    """Return how many of `count` must be found. 1e-9 keeps a product such as 0.07 x 100 from being rounded up."""
    return max(1, math.ceil(recall * count - 1e-9))


__all__ = ["calibrate_labelled"]
