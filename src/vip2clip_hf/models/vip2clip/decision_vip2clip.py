"""Image processor of ViP²-CLIP: photos to pixel values, masks to labels, model outputs to results at photo size."""

import importlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np


LABELS = ("normal", "anomalous")
# More calibration scores than this are kept as so many quantiles, rounded upward.
MAX_STORED_SCORES = 10_000


def _exact(false_alarm_rate: float) -> Fraction:
    """The rate as it was written: 0.01 is one in a hundred, not the nearest binary number."""
    if isinstance(false_alarm_rate, bool) or not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate is {false_alarm_rate!r}; expected a number between 0 and 1, such as 0.01.")
    return Fraction(str(float(false_alarm_rate)))


def min_calibration_images(false_alarm_rate: float) -> int:
    """
    Smallest number of normal images that can give a false alarm rate: 99 for 0.01, 9 for 0.1.

    Raises:
        ValueError: a rate outside (0, 1).
    """
    return max(1, math.ceil(1 / _exact(false_alarm_rate) - 1))


def conformal_threshold(scores: Sequence[float], false_alarm_rate: float) -> float:
    """
    Threshold that a new normal image exceeds with a probability of at most `false_alarm_rate`.

    Args:
        scores (`Sequence[float]`): of normal images that nothing was trained or chosen on.
        false_alarm_rate (`float`): in (0, 1).

    Returns:
        `float`: one of the scores; an image is anomalous when its score is greater.

    Raises:
        ValueError: a rate outside (0, 1), too few scores for it, or scores that are not finite.
    """
    rate, ordered = _exact(false_alarm_rate), np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not np.isfinite(ordered).all():
        raise ValueError("The calibration scores have NaN or infinite values; expected finite ones.")
    count, needed = len(ordered), min_calibration_images(false_alarm_rate)
    if count < needed:
        raise ValueError(
            f"A false alarm rate of {float(rate):g} needs at least {needed} normal images, found {count}. Take more "
            f"images, or a rate of at least {1 / (count + 1):.3g}."
        )
    return float(ordered[math.ceil((count + 1) * (1 - rate)) - 1])


def stored_scores(scores: Sequence[float]) -> list[float]:
    """Scores in ascending order as they are kept; of more than 10,000 so many quantiles, each the largest score of its
    share, so that p-values from them are never too small."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if len(ordered) > MAX_STORED_SCORES:
        ends = -(-np.arange(1, MAX_STORED_SCORES + 1) * len(ordered) // MAX_STORED_SCORES)
        ordered = ordered[ends - 1]
    return ordered.tolist()


def p_value(score: float, stored: Sequence[float], num_images: int) -> float:
    """
    How likely a normal image has a score this large: (1 + normal scores at least as large) / (1 + normal scores).

    Args:
        score (`float`): of the image in question.
        stored (`Sequence[float]`): from [`stored_scores`].
        num_images (`int`): number of calibration images.

    Returns:
        `float` in (0, 1]. With all scores stored it is at most the false alarm rate exactly where the threshold of
        that rate is exceeded.
    """
    below = int(np.searchsorted(np.asarray(stored), score, side="left"))
    if len(stored) < num_images:
        below = -(-below * num_images // len(stored))
    return (1 + num_images - below) / (1 + num_images)


def _ndimage() -> Any:
    # Not by name: a checkpoint that carries this file would ask for scipy before anything is wanted of it.
    try:
        return importlib.import_module("scipy.ndimage")
    except ImportError as error:
        raise ImportError("Regions need scipy: pip install 'vip2clip_hf[data]'.") from error


def _label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    return _ndimage().label(mask, structure=np.ones((3, 3), dtype=int))


def region_score(anomaly_map: np.ndarray, min_area: int = 1) -> float:
    """
    The largest value at which the map still shows a region of some size: the map has a connected region (over edges or
    corners) of at least `min_area` pixels above a threshold exactly when this score is above it.

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`): values in [0, 1].
        min_area (`int`, defaults to 1): pixels of the region; with 1 the score is the largest value.

    Raises:
        ValueError: an area larger than the map, or smaller than one pixel.
    """
    if not 1 <= min_area <= anomaly_map.size:
        raise ValueError(f"min_area is {min_area}; expected 1 to {anomaly_map.size}, the pixels of the map.")
    if min_area == 1:
        return float(anomaly_map.max())

    def shows(value: float) -> bool:
        labels, _ = _label_regions(anomaly_map >= value)
        return bool((np.bincount(labels.ravel())[1:] >= min_area).any())

    # No region has min_area pixels above the min_area-th largest value; the whole map is one at the smallest.
    bound = np.partition(anomaly_map.ravel(), -min_area)[-min_area]
    values = np.unique(anomaly_map[anomaly_map <= bound])
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if shows(values[middle]) else (low, middle - 1)
    return float(values[low])


def min_region_pixels(shape: tuple[int, int], min_region_area: float) -> int:
    """A share of a map of some shape in pixels, at least one."""
    return max(1, math.ceil(min_region_area * shape[0] * shape[1]))


def keep_large_regions(mask: np.ndarray, min_area: int) -> np.ndarray:
    """A mask without its connected regions of fewer than `min_area` pixels."""
    if min_area <= 1:
        return mask
    labels, _ = _label_regions(mask)
    large = np.bincount(labels.ravel()) >= min_area
    large[0] = False
    return large[labels]


def find_regions(anomaly_map: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    """
    Connected areas of a mask (over edges or corners).

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`): values in [0, 1].
        mask (`np.ndarray` of shape `(height, width)`): bool, True for anomalous pixels.

    Returns:
        `list[dict]`: `box` (left, top, right, bottom in pixels, right and bottom just outside), `area` in pixels,
        `mean_score` and `peak_score` of the map inside; the largest peak first. Plain numbers, ready for JSON.
    """
    labels, number = _label_regions(mask)
    if number == 0:
        return []
    regions = []
    for index, (rows, columns) in enumerate(_ndimage().find_objects(labels), start=1):
        inside = anomaly_map[rows, columns][labels[rows, columns] == index]
        regions.append(
            {
                "box": [columns.start, rows.start, columns.stop, rows.stop],
                "area": int(inside.size),
                "mean_score": float(inside.mean()),
                "peak_score": float(inside.max()),
            }
        )
    return sorted(regions, key=lambda region: (-region["peak_score"], -region["area"], region["box"]))


def check_calibration(found: dict[str, Any]):
    """
    Raises:
        ValueError: a calibration of another form than [`vip2clip_hf.calibration.calibrate`] writes.
    """
    for level in ("image", "pixel"):
        part = found.get(level)
        if part is None:
            continue
        scores = part.get("scores") if isinstance(part, dict) else None
        count = part.get("num_images") if isinstance(part, dict) else None
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"calibration[{level!r}] has num_images {count!r}; expected a positive integer.")
        if scores is not None and (len(scores) != min(count, MAX_STORED_SCORES) or sorted(scores) != list(scores)):
            raise ValueError(
                f"calibration[{level!r}]['scores'] has {len(scores)} entries; expected "
                f"{min(count, MAX_STORED_SCORES)} in ascending order."
            )


def near_large_regions(mask: np.ndarray, least: float, size: tuple[int, int]) -> np.ndarray:
    """Where a mask that was resized from this one may be True, when of the connected regions of this one only those
    count that cover at least a share of the image: they and their neighbours, at the size wanted."""
    large = keep_large_regions(mask, min_region_pixels(mask.shape, least))
    # A pixel of the resized map lies between four of this one, one of which is above the threshold where it is.
    padded = np.pad(large, 1)
    near = np.zeros_like(large)
    for down in range(3):
        for right in range(3):
            near |= padded[down : down + large.shape[0], right : right + large.shape[1]]
    rows = (np.arange(size[0]) + 0.5) * large.shape[0] / size[0]
    columns = (np.arange(size[1]) + 0.5) * large.shape[1] / size[1]
    return near[np.ix_(rows.astype(int), columns.astype(int))]


__all__ = [
    "LABELS",
    "MAX_STORED_SCORES",
    "check_calibration",
    "conformal_threshold",
    "find_regions",
    "keep_large_regions",
    "min_calibration_images",
    "min_region_pixels",
    "near_large_regions",
    "p_value",
    "region_score",
    "stored_scores",
]
