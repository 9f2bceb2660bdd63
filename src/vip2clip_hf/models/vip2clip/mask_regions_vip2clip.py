"""Masks at the size of the model, and the regions that would vanish there. Needs NumPy and Pillow only."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class ReducedMask:
    """
    A mask at the size of the model.

    Args:
        labels (`np.ndarray` of shape `(height, width)`, uint8): 1 for anomalous pixels.
        num_regions (`int`): number of connected regions at the size of the image. Pixels that share an edge or a
            corner are connected.
        num_small_regions (`int`): number of these regions that have no pixel left when the mask is resized.
        num_lost_regions (`int`): number of small regions that are not kept.
    """

    labels: np.ndarray
    num_regions: int = 0
    num_small_regions: int = 0
    num_lost_regions: int = 0


def reduce_mask(marked: np.ndarray, size: tuple[int, int], keep_small_regions: bool = True) -> ReducedMask:
    """
    Resize a mask bilinearly, with a threshold of one half as in the released code.

    Args:
        marked (`np.ndarray` of shape `(height, width)`, bool): anomalous pixels.
        size (`tuple[int, int]`): height and width to resize to.
        keep_small_regions (`bool`, defaults to `True`):
            Whether a region without a pixel left is kept. It gets the pixel at its middle, and if it is longer than
            two pixels, all its pixels with at least half of its largest value.

    Returns:
        [`ReducedMask`]: the resized mask.
    """
    if not marked.any():
        return ReducedMask(np.zeros(size, dtype=np.uint8))
    if marked.shape == size:
        resized = marked.astype(np.uint8) * 255
    else:
        image = Image.fromarray(marked.astype(np.uint8) * 255)
        resized = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    kept = resized > 127.5
    runs = _runs(marked)
    region = _regions(*runs)
    count = int(region.max()) + 1
    cells = _cells(runs, marked.shape, size)
    has_pixel = np.zeros(count, dtype=bool)
    np.logical_or.at(has_pixel, region, _any_in(kept, *cells))
    small = np.flatnonzero(~has_pixel)
    labels = kept.astype(np.uint8)
    if keep_small_regions and small.size:
        _keep(labels, resized, runs, region, small, cells, marked.shape)
    return ReducedMask(labels, count, len(small), 0 if keep_small_regions else len(small))


def count_regions(marked: np.ndarray) -> int:
    """
    Count the connected regions of a mask.

    Args:
        marked (`np.ndarray` of shape `(height, width)`, bool): anomalous pixels.

    Returns:
        `int`: number of regions. Pixels that share an edge or a corner are connected.
    """
    return int(_regions(*_runs(marked)).max(initial=-1)) + 1


def label_regions(marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Number the connected regions of a mask. Pixels that share an edge or a corner are connected.

    Args:
        marked (`np.ndarray` of shape `(height, width)`, bool): anomalous pixels.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the number of the region of each pixel, from 1 in reading order of their first
        pixels, and 0 for the other pixels, int32 of shape `(height, width)`; and the boxes of the regions, left, top,
        right and bottom in pixels, of shape `(num_regions, 4)`. Right and bottom are exclusive.
    """
    runs = _runs(marked)
    rows, first, last, width = runs
    region = _regions(*runs)
    # Of each pixel, the change of the number from the pixel before. Runs of a row do not touch.
    changes = np.zeros(marked.size + 1, dtype=np.int32)
    changes[rows * width + first] = region + 1
    changes[rows * width + last] -= (region + 1).astype(np.int32)
    labels = np.cumsum(changes[:-1], dtype=np.int32).reshape(marked.shape)
    if not len(rows):
        return labels, np.zeros((0, 4), dtype=np.int64)
    order = np.argsort(region, kind="stable")
    starts = np.flatnonzero(np.diff(region[order], prepend=-1))
    lefts, tops = np.minimum.reduceat(first[order], starts), np.minimum.reduceat(rows[order], starts)
    rights, bottoms = np.maximum.reduceat(last[order], starts), np.maximum.reduceat(rows[order], starts) + 1
    return labels, np.stack([lefts, tops, rights, bottoms], axis=1)


def _runs(marked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Rows, first and last + 1 columns of all horizontal runs of marked pixels, in reading order, and the width."""
    height, width = marked.shape
    padded = np.zeros((height, width + 2), dtype=bool)
    padded[:, 1:-1] = marked
    changes = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    first, last = changes[0::2], changes[1::2]
    return first // (width + 1), first % (width + 1), last % (width + 1), width


def _regions(rows: np.ndarray, first: np.ndarray, last: np.ndarray, width: int) -> np.ndarray:
    """Number of the region of each run, from 0."""
    count, stride = len(rows), width + 2
    # Runs of the next row that touch a run, also at a corner.
    low = np.searchsorted(rows * stride + last, (rows + 1) * stride + first)
    high = np.searchsorted(rows * stride + first, (rows + 1) * stride + last, side="right")
    touching = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(count), touching)
    lower = np.arange(touching.sum()) - np.repeat(np.cumsum(touching) - touching - low, touching)
    parents = np.arange(count)
    while True:
        one, two = parents[upper], parents[lower]
        if np.array_equal(one, two):
            break
        smaller = np.minimum(one, two)
        np.minimum.at(parents, one, smaller)
        np.minimum.at(parents, two, smaller)
        while not np.array_equal(parents[parents], parents):
            parents = parents[parents]
    return np.unique(parents, return_inverse=True)[1].reshape(-1)


def _cells(
    runs: tuple[np.ndarray, np.ndarray, np.ndarray, int], shape: tuple[int, ...], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of the resized mask that overlap each run: rows from, to (exclusive), columns from, to (exclusive)."""
    rows, first, last, _ = runs
    return (
        rows * size[0] // shape[0],
        -(-(rows + 1) * size[0] // shape[0]),
        first * size[1] // shape[1],
        -(-last * size[1] // shape[1]),
    )


def _any_in(kept: np.ndarray, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return whether each box contains a pixel."""
    sums = np.zeros((kept.shape[0] + 1, kept.shape[1] + 1), dtype=np.int32)
    np.cumsum(np.cumsum(kept, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] > 0


def _keep(
    labels: np.ndarray,
    resized: np.ndarray,
    runs: tuple[np.ndarray, np.ndarray, np.ndarray, int],
    region: np.ndarray,
    small: np.ndarray,
    cells: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    shape: tuple[int, ...],
) -> None:
    """Mark pixels of the small regions in `labels`."""
    rows, first, last, _ = runs
    top, bottom, left, right = cells
    # Runs in the order of their regions, and the run with the pixel in the middle of each region.
    order = np.argsort(region, kind="stable")
    firsts = np.searchsorted(region[order], np.arange(region.max() + 2))
    starts, ends = firsts[small], firsts[small + 1]
    pixels = np.concatenate([[0], np.cumsum((last - first)[order])])
    middle = order[np.searchsorted(pixels, (pixels[starts] + pixels[ends]) / 2) - 1]
    row = (2 * rows[middle] + 1) * labels.shape[0] // (2 * shape[0])
    column = (first[middle] + last[middle]) * labels.shape[1] // (2 * shape[1])
    labels[row, np.minimum(column, labels.shape[1] - 1)] = 1
    height = np.maximum.reduceat(bottom[order], firsts[:-1]) - np.minimum.reduceat(top[order], firsts[:-1])
    width = np.maximum.reduceat(right[order], firsts[:-1]) - np.minimum.reduceat(left[order], firsts[:-1])
    for number in np.flatnonzero(np.maximum(height, width)[small] > 2):
        members = order[starts[number] : ends[number]]
        box = (slice(top[members].min(), bottom[members].max()), slice(left[members].min(), right[members].max()))
        inside = np.zeros(resized[box].shape, dtype=bool)
        for member in members:
            inside[
                top[member] - box[0].start : bottom[member] - box[0].start,
                left[member] - box[1].start : right[member] - box[1].start,
            ] = True
        largest = int(resized[box][inside].max())
        if largest:
            labels[box] |= inside & (2 * resized[box].astype(int) >= largest)


__all__ = ["ReducedMask", "count_regions", "label_regions", "reduce_mask"]
