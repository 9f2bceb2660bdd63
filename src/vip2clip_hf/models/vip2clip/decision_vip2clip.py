"""Decisions on scores and maps: calibrated thresholds, p-values and regions."""

import contextlib
import gc
import importlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np


LABELS = ("normal", "anomalous")
# If there are more calibration scores, this number of quantiles is stored instead, rounded up.
MAX_STORED_SCORES = 10_000


def _exact(false_alarm_rate: float) -> Fraction:
    """Return the decimal value of the rate: 0.01 is exactly 1/100, not the nearest binary number."""
    if isinstance(false_alarm_rate, bool) or not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate is {false_alarm_rate!r}; expected a number between 0 and 1, such as 0.01.")
    return Fraction(str(float(false_alarm_rate)))


def min_calibration_images(false_alarm_rate: float) -> int:
    """
    Return the minimum number of normal images needed to calibrate for a false-alarm rate.

    Args:
        false_alarm_rate (`float`): false-alarm rate, in (0, 1).

    Returns:
        `int`: number of images, for example 9 for a rate of 0.1 and 99 for 0.01.

    Raises:
        ValueError: if the rate is outside (0, 1).
    """
    return max(1, math.ceil(1 / _exact(false_alarm_rate) - 1))


def conformal_threshold(scores: Sequence[float], false_alarm_rate: float) -> float:
    """
    Compute a threshold that a new normal image exceeds with a probability of at most `false_alarm_rate`.

    Args:
        scores (`Sequence[float]`): scores of normal images not used for training or model selection.
        false_alarm_rate (`float`): false-alarm rate, in (0, 1).

    Returns:
        `float`: the threshold, one of the scores. An image is anomalous if its score is greater.

    Raises:
        ValueError: if the rate is outside (0, 1), there are too few scores for it, or a score is not finite.
    """
    rate, ordered = _exact(false_alarm_rate), np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not np.isfinite(ordered).all():
        raise ValueError("The calibration scores contain NaN or infinite values; expected finite scores.")
    count, needed = len(ordered), min_calibration_images(false_alarm_rate)
    if count < needed:
        raise ValueError(
            f"A false-alarm rate of {float(rate):g} needs at least {needed} normal images, found {count}. Add images, "
            f"or choose a rate of at least {1 / (count + 1):.3g}."
        )
    return float(ordered[math.ceil((count + 1) * (1 - rate)) - 1])


def stored_scores(scores: Sequence[float]) -> list[float]:
    """
    Sort calibration scores and limit their number for storage in a checkpoint.

    Args:
        scores (`Sequence[float]`): scores of the calibration images.

    Returns:
        `list[float]`: the scores in ascending order. If there are more than 10,000 scores, 10,000 quantiles instead,
        each the largest score in its group, so p-values computed from them are never too small.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if len(ordered) > MAX_STORED_SCORES:
        ends = -(-np.arange(1, MAX_STORED_SCORES + 1) * len(ordered) // MAX_STORED_SCORES)
        ordered = ordered[ends - 1]
    return ordered.tolist()


def p_value(score: float, stored: Sequence[float], num_images: int) -> float:
    """
    Compute the p-value of a score: the probability that a normal image has a score at least as large.

    The p-value is (1 + number of normal scores at least as large) / (1 + number of normal scores).

    Args:
        score (`float`): score of the image.
        stored (`Sequence[float]`): calibration scores from [`stored_scores`].
        num_images (`int`): number of calibration images.

    Returns:
        `float`: the p-value, in (0, 1]. If all scores are stored, the p-value is at most the false-alarm rate exactly
        if the score is greater than the threshold for that rate.
    """
    below = int(np.searchsorted(np.asarray(stored), score, side="left"))
    if len(stored) < num_images:
        below = -(-below * num_images // len(stored))
    return (1 + num_images - below) / (1 + num_images)


def _ndimage() -> Any:
    # Imported by importlib, because an import statement makes transformers require scipy to load a checkpoint that
    # contains this file.
    try:
        return importlib.import_module("scipy.ndimage")
    except ImportError as error:
        raise ImportError("Regions need scipy, which is not installed: pip install 'vip2clip_hf[data]'.") from error


def _label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    return _ndimage().label(mask, structure=np.ones((3, 3), dtype=int))


def region_score(anomaly_map: np.ndarray, min_area: int = 1) -> float:
    """
    Compute the largest value at which the map has a region of at least `min_area` pixels.

    For any threshold, the map has such a region above the threshold exactly if this score is above the threshold.
    Pixels of a region are connected by edges or corners.

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`): anomaly map, in [0, 1].
        min_area (`int`, defaults to 1): minimum number of pixels. With 1, the score is the maximum of the map.

    Returns:
        `float`: the score, one of the values of the map.

    Raises:
        ImportError: if scipy is not installed and `min_area` is greater than 1.
        ValueError: if the area is less than 1 or larger than the map.
    """
    if not 1 <= min_area <= anomaly_map.size:
        raise ValueError(
            f"min_area is {min_area}; expected an integer from 1 to {anomaly_map.size}, the number of pixels of the "
            "map."
        )
    if min_area == 1:
        return float(anomaly_map.max())

    def has_region(value: float) -> bool:
        labels, _ = _label_regions(anomaly_map >= value)
        return bool((np.bincount(labels.ravel())[1:] >= min_area).any())

    # Binary search. Above the min_area-th largest value, there are too few pixels. At the smallest value, the whole
    # map is one region.
    bound = np.partition(anomaly_map.ravel(), -min_area)[-min_area]
    values = np.unique(anomaly_map[anomaly_map <= bound])
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if has_region(values[middle]) else (low, middle - 1)
    return float(values[low])


def min_region_pixels(shape: tuple[int, int], min_region_area: float) -> int:
    """
    Convert the minimum area of a region from a fraction of the map to pixels.

    Args:
        shape (`tuple[int, int]`): height and width of the map.
        min_region_area (`float`): minimum area as a fraction of the map.

    Returns:
        `int`: minimum area in pixels, at least 1.
    """
    return max(1, math.ceil(min_region_area * shape[0] * shape[1]))


def keep_large_regions(mask: np.ndarray, min_area: int) -> np.ndarray:
    """
    Remove regions of fewer than `min_area` pixels from a mask. Pixels of a region are connected by edges or corners.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): bool, True for anomalous pixels.
        min_area (`int`): minimum number of pixels.

    Returns:
        `np.ndarray` of shape `(height, width)`: the mask without small regions, or `mask` itself if `min_area` is at
        most 1.

    Raises:
        ImportError: if scipy is not installed and `min_area` is greater than 1.
    """
    if min_area <= 1:
        return mask
    labels, _ = _label_regions(mask)
    large = np.bincount(labels.ravel()) >= min_area
    large[0] = False
    return large[labels]


def find_regions(anomaly_map: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    """
    List the regions of a mask. Pixels of a region are connected by edges or corners.

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`): anomaly map, in [0, 1].
        mask (`np.ndarray` of shape `(height, width)`): bool, True for anomalous pixels.

    Returns:
        `list[dict]`: one dict per region, sorted by `peak_score` in descending order. All values can be saved as JSON:

        - `box` (`list[int]`): left, top, right and bottom in pixels. Right and bottom are exclusive.
        - `area` (`int`): number of pixels.
        - `mean_score`, `peak_score` (`float`): mean and maximum of the map in the region.

    Raises:
        ImportError: if scipy is not installed.
        ValueError: if map and mask differ in shape.
    """
    if anomaly_map.shape != mask.shape:
        raise ValueError(f"anomaly_map has shape {anomaly_map.shape}; expected {mask.shape}, the shape of the mask.")
    labels, number = _label_regions(mask)
    if number == 0:
        return []
    # Sort the pixels by region. The pixels of a region are then a slice, and start at `first`.
    rows, columns = np.nonzero(labels)
    regions = labels[rows, columns] - 1
    areas = np.bincount(regions, minlength=number)
    first = np.cumsum(areas) - areas
    order = np.argsort(regions, kind="stable")
    rows, columns = rows[order], columns[order]
    values = anomaly_map[rows, columns].astype(np.float64)
    peaks, means = np.maximum.reduceat(values, first), np.add.reduceat(values, first) / areas
    lefts, tops = np.minimum.reduceat(columns, first), np.minimum.reduceat(rows, first)
    rights, bottoms = np.maximum.reduceat(columns, first) + 1, np.maximum.reduceat(rows, first) + 1
    boxes = np.stack([lefts, tops, rights, bottoms], axis=1)
    ranking = np.lexsort((bottoms, rights, tops, lefts, -areas, -peaks))  # the last key is the most important one
    with _without_garbage_collection():
        table = zip(*(column.take(ranking, axis=0).tolist() for column in (boxes, areas, means, peaks)))
        return [{"box": box, "area": area, "mean_score": mean, "peak_score": peak} for box, area, mean, peak in table]


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause Python's garbage collector, which takes most of the time when creating a million dicts."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def check_calibration(found: dict[str, Any]) -> None:
    """
    Check the `calibration` of a configuration.

    Args:
        found (`dict[str, Any]`): the calibration, as written by [`vip2clip_hf.calibration.calibrate`].

    Raises:
        ValueError: if the number of images or the stored scores are invalid.
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
    """
    Find the pixels of a resized map that belong to large regions of the original mask.

    Use the result to restrict the mask of the resized map. It contains the large regions and a margin of one pixel
    around them, because resizing can enlarge a region.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): bool, mask at the original size.
        least (`float`): minimum area of a region as a fraction of the mask.
        size (`tuple[int, int]`): height and width of the resized map.

    Returns:
        `np.ndarray` of shape `size`: bool, True for pixels in or next to a large region.

    Raises:
        ImportError: if scipy is not installed and the minimum area is greater than one pixel.
    """
    large = keep_large_regions(mask, min_region_pixels((mask.shape[0], mask.shape[1]), least))
    # A resized pixel is interpolated from four pixels. If it is above the threshold, at least one of them is as well.
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
