"""Decisions on scores and maps: labels, masks, p-values, calibrated thresholds and regions."""

import contextlib
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .arguments_vip2clip import threshold_pair
from .decision_config_vip2clip import DecisionConfig
from .interpolation_vip2clip import interpolation_weights, resize_map
from .mask_regions_vip2clip import label_regions


# Up to this number, regions are measured one by one.
FEW_REGIONS = 100


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
        labels, _ = label_regions(anomaly_map >= value)
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
    """
    if min_area <= 1:
        return mask
    labels, _ = label_regions(mask)
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
        ValueError: if map and mask differ in shape.
    """
    if anomaly_map.shape != mask.shape:
        raise ValueError(f"anomaly_map has shape {anomaly_map.shape}; expected {mask.shape}, the shape of the mask.")
    labels, boxes = label_regions(mask)
    if not len(boxes):
        return []
    measure = _measure_one_by_one if len(boxes) <= FEW_REGIONS else _measure_all
    columns = (*boxes.T, *measure(anomaly_map, labels, boxes))
    lefts, tops, rights, bottoms, areas, _, peaks = columns
    ranking = np.argsort(-peaks)
    same = peaks[ranking[1:]] == peaks[ranking[:-1]]
    if same.any():  # sort only these by area and box as well: sorting by many keys takes long
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        among = ranking[tied]
        # The last key is the most important one.
        keys = (among, *(key[among] for key in (bottoms, rights, tops, lefts, -areas, -peaks)))
        ranking[tied] = among[np.lexsort(keys)]
    with _without_garbage_collection():
        return [
            {"box": [left, top, right, bottom], "area": area, "mean_score": mean, "peak_score": peak}
            for left, top, right, bottom, area, mean, peak in zip(*(column[ranking].tolist() for column in columns))
        ]


def _measure_one_by_one(anomaly_map: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """
    Measure the regions. Needs little memory for large regions.

    Returns:
        `tuple`: area, mean and peak of each region, arrays of shape `(num_regions,)`.
    """
    measured = []
    for label, (left, top, right, bottom) in enumerate(boxes, start=1):
        box = (slice(top, bottom), slice(left, right))
        inside = anomaly_map[box][labels[box] == label]
        measured.append((inside.size, inside.mean(dtype=np.float64), np.float64(inside.max())))
    return tuple(np.array(column) for column in zip(*measured))


def _measure_all(anomaly_map: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the same as [`_measure_one_by_one`], faster for many regions."""
    # Sort the pixels by region. The pixels of a region are then a slice, and start at `first`.
    rows, columns = np.nonzero(labels)
    regions = labels[rows, columns] - 1
    areas = np.bincount(regions, minlength=len(boxes))
    first = np.cumsum(areas) - areas
    order = np.argsort(regions, kind="stable")
    values = anomaly_map[rows[order], columns[order]].astype(np.float64)
    return areas, np.add.reduceat(values, first) / areas, np.maximum.reduceat(values, first)


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


@dataclass
class Decided:
    """
    Result of [`decide`].

    Args:
        label (`int`): 0 for a normal, 1 for an anomalous image.
        anomaly_map (`np.ndarray` of shape `(height, width)`): the map at the size of the mask, float32. It does not
            share memory with the argument.
        mask (`np.ndarray` of shape `(height, width)`): bool, `True` for anomalous pixels.
        p_value (`float`, *optional*): p-value of the score, in (0, 1]. `None` without a valid calibration.
    """

    label: int
    anomaly_map: np.ndarray
    mask: np.ndarray
    p_value: float | None


def decide(
    score: float,
    anomaly_map: np.ndarray,
    decision: DecisionConfig,
    *,
    size: tuple[int, int] | None = None,
    threshold: float | tuple[float | None, float | None] | None = None,
    calibrated: bool = True,
) -> Decided:
    """
    Decide about one image. Every decision of this package comes from this function.

    The image is anomalous if its score is greater than the image threshold. Regions are decided on the map at the size
    of the model: connected pixels with a value greater than the pixel threshold, except for regions that are too
    small. At another size, the mask contains the pixels of the resized map that are above the threshold and
    interpolated from a decided region. If a region has no such pixel, the pixel at the place of its largest value is
    in the mask, so a decided region never disappears.

    Args:
        score (`float`): score of the image, in [0, 1].
        anomaly_map (`np.ndarray` of shape `(height, width)`): its map, in [0, 1].
        decision ([`DecisionConfig`]): thresholds, minimum area and calibration.
        size (`tuple[int, int]`, *optional*): height and width of the result. By default, the size of the map.
        threshold (`float` or `tuple[float, float]`, *optional*): thresholds to use instead. `None` in a pair is the
            threshold of `decision`.
        calibrated (`bool`, defaults to `True`): whether the calibration belongs to the scores of the model. If not,
            there is no p-value.

    Returns:
        [`Decided`]: label, map, mask and p-value.

    Raises:
        ValueError: if a threshold is outside [0, 1].
    """
    pair = threshold_pair(threshold, (decision.image_threshold, decision.pixel_threshold))
    image_threshold, pixel_threshold = (float(np.float32(value)) for value in pair)
    anomaly_map = np.asarray(anomaly_map, dtype=np.float32)
    shape = (anomaly_map.shape[0], anomaly_map.shape[1])
    mask = anomaly_map > pixel_threshold
    least = min_region_pixels(shape, decision.min_region_area)
    if least > 1:
        mask = keep_large_regions(mask, least)
    resized = resize_map(anomaly_map, shape if size is None else size)
    if resized.shape != shape:
        mask = _resized_mask(mask, anomaly_map, resized > pixel_threshold)
    value = decision.p_value(float(np.float32(score))) if calibrated else None
    return Decided(int(np.float32(score) > np.float32(image_threshold)), resized, mask, value)


def as_result(score: float, decided: Decided, names: tuple[str, str], decision: DecisionConfig) -> dict[str, Any]:
    """
    Return a decision as the entries of a result of the pipeline.

    Args:
        score (`float`): score of the image.
        decided ([`Decided`]): the decision.
        names (`tuple[str, str]`): names of normal and of anomalous images.
        decision ([`DecisionConfig`]): what it was decided with.

    Returns:
        `dict`: `score`, `label`, `anomaly_map`, `mask` and, with calibration scores, `p_value`.
    """
    result = {"score": score, "label": names[decided.label], "anomaly_map": decided.anomaly_map, "mask": decided.mask}
    return result if decision.image_scores is None else {**result, "p_value": decided.p_value}


def _resized_mask(decided: np.ndarray, anomaly_map: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Restrict the pixels above the threshold at another size to decided regions, and keep a pixel of each region."""
    if not decided.any():
        return np.zeros_like(above)
    (height, width), size = decided.shape, above.shape
    (top, bottom, _), (left, right, _) = interpolation_weights(height, size[0]), interpolation_weights(width, size[1])
    # A pixel is interpolated from a block of at most 2 x 2 pixels, so from one region at most.
    columns = decided[:, left] | decided[:, right]
    mask = above & (columns[top] | columns[bottom])
    # The pixels that the mask is interpolated from.
    used_rows = _any_of(mask, top, bottom, height)  # (height, new width)
    used = _any_of(np.ascontiguousarray(used_rows.T), left, right, width).T
    lost = decided & ~_spread(used & decided, decided)
    if lost.any():
        # Numbers in the order of the values, so that each region has one largest number.
        rank = np.zeros(lost.shape, dtype=np.int64)
        rank[lost] = np.argsort(np.argsort(anomaly_map[lost], kind="stable")) + 1
        largest = np.argwhere(lost & (rank == _spread(rank, lost)))
        # The pixel that contains the centre.
        mask[tuple(((2 * largest + 1) * size // (2 * np.array(lost.shape))).T)] = True
    return mask


def _any_of(mask: np.ndarray, first: np.ndarray, last: np.ndarray, length: int) -> np.ndarray:
    """Return for each of `length` pixels along the first axis whether it is a source of any pixel of the mask."""
    numbers = np.arange(length)
    starts, ends = np.searchsorted(last, numbers, side="left"), np.searchsorted(first, numbers, side="right")
    # Faster than np.logical_or.reduceat.
    return np.stack([mask[start:end].any(axis=0) for start, end in zip(starts, ends)])


def _spread(values: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Give each pixel within a region the largest value in the region, neighbour by neighbour."""
    while True:
        wider = values.copy()
        for _ in range(2):  # along both axes
            wider = wider.T.copy()
            before = wider.copy()
            np.maximum(wider[1:], before[:-1], out=wider[1:])
            np.maximum(wider[:-1], before[1:], out=wider[:-1])
        wider *= within
        if np.array_equal(wider, values):
            return values
        values = wider


__all__ = [
    "Decided",
    "as_result",
    "conformal_threshold",
    "decide",
    "find_regions",
    "keep_large_regions",
    "min_calibration_images",
    "min_region_pixels",
    "region_score",
]
