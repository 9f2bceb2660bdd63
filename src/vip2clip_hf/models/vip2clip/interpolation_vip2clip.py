"""Bilinear interpolation of maps in NumPy, as `torch.nn.functional.interpolate` with align_corners=False."""

from functools import lru_cache

import numpy as np


# Values that are computed at once.
BLOCK = 1 << 16


def resize_map(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Resize a map with bilinear interpolation, without antialiasing.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` up to the rounding of float32.

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`): the map, float32.
        size (`tuple[int, int]`): height and width of the result.

    Returns:
        `np.ndarray` of shape `size`: the resized map, float32. It does not share memory with the argument.
    """
    found = np.asarray(anomaly_map, dtype=np.float32)
    if tuple(size) == found.shape:
        return found.copy()
    # Rows are contiguous and therefore fast to gather. The first step works on the columns as rows of the small map.
    columns = _interpolate_rows(np.ascontiguousarray(found.T), size[1])  # (new width, height)
    return _interpolate_rows(np.ascontiguousarray(columns.T), size[0])


def _interpolate_rows(rows: np.ndarray, count: int) -> np.ndarray:
    first, last, weight = interpolation_weights(len(rows), count)
    weight = weight[:, None]
    found = np.empty((count, rows.shape[1]), dtype=np.float32)
    # Blocks stay in the cache of the CPU.
    step = max(1, BLOCK // rows.shape[1])
    for start in range(0, count, step):
        block = slice(start, start + step)
        np.multiply(rows[first[block]], 1 - weight[block], out=found[block])
        found[block] += rows[last[block]] * weight[block]
    return found


@lru_cache(maxsize=32)
def interpolation_weights(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Compute where the pixels of a resized axis come from.

    Args:
        length, new_length (`int`): number of pixels before and after.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: of each new pixel, the first and the last pixel that it is
        interpolated from, which can be the same, and the weight of the last, float32 in [0, 1). All of shape
        `(new_length,)`.
    """
    if length == new_length:
        numbers = np.arange(length)
        return numbers, numbers, np.zeros(length, dtype=np.float32)
    # Like torch: in float32, with one rounding of the product and the sum.
    scale = np.float64(np.float32(length) / np.float32(new_length))
    position = np.maximum(scale * (np.arange(new_length) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(position.astype(np.int64), length - 1)
    weight = np.clip(position - first.astype(np.float32), 0, 1)
    last = np.where(weight > 0, np.minimum(first + 1, length - 1), first)
    weight = np.where(last > first, weight, np.float32(0)).astype(np.float32)
    return first, last, weight


__all__ = ["interpolation_weights", "resize_map"]
