"""Counting and cumulative sums for [`PixelHistogram`], and the order-preserving keys of float32 values."""

import numpy as np


def to_keys(values: np.ndarray) -> np.ndarray:
    """float32 as uint32 of the same order. Minus zero equals zero."""
    bits = (values + np.float32(0)).view(np.uint32)
    if bits.size and bits.max() >> 31:
        return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    bits |= np.uint32(1 << 31)
    return bits


def to_values(keys: np.ndarray) -> np.ndarray:
    """The inverse of `to_keys`."""
    keys = np.asarray(keys).astype(np.uint32)
    return np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).astype(np.uint32).view(np.float32)


def grow(array: np.ndarray, size: int, fill: float = 0) -> np.ndarray:
    grown = np.full((*array.shape[:-1], size), fill, dtype=array.dtype)
    grown[..., : array.shape[-1]] = array
    return grown


def count_keys(places: np.ndarray, positive_places: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Negatives, positives and weights by place, `(3, size)`."""
    counts = np.zeros((3, size))
    counts[NEGATIVE] = np.bincount(places, minlength=size)
    count_positive(counts, positive_places, weights)
    return counts


def count_positive(counts: np.ndarray, places: np.ndarray, weights: np.ndarray):
    """Of counts that hold all values as negatives, make those at some places positives."""
    if places.size:
        size = counts.shape[1]
        counts[POSITIVE] = np.bincount(places, minlength=size)
        counts[WEIGHT] = np.bincount(places, weights=weights, minlength=size)
        counts[NEGATIVE] -= counts[POSITIVE]


def add_at(counts: np.ndarray, places: np.ndarray, values: np.ndarray):
    """Add to places that may come more than once."""
    for row, added in zip(counts, values):
        np.add.at(row, places, added)


def with_pixels(mass: np.ndarray) -> np.ndarray:
    """Negatives and pixels, `(2, ...)`."""
    return np.stack([mass[NEGATIVE], mass[NEGATIVE] + mass[POSITIVE]])


def sum_from_above(mass: np.ndarray) -> np.ndarray:
    """Negatives and pixels in every bin and, along the last axis, above it."""
    from_above = with_pixels(mass)
    backwards = from_above[..., ::-1]
    np.cumsum(backwards, axis=-1, out=backwards)
    return from_above


def select_nodes(nodes: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the values at some places lie in divided bins, and the nodes that divide these."""
    node = nodes.take(places)
    chosen = (node >= 0).nonzero()[0]
    return chosen, node[chosen].astype(np.intp)


def parts_and_leaves(keys: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the parts of nodes that keys lie in, and which of their leaves. `nodes` is overwritten."""
    nodes *= PARTS
    nodes += (keys >> PART_BITS) & (PARTS - 1)
    return nodes, (keys & (LEAVES - 1)).astype(np.uint8)


NEGATIVE, POSITIVE, WEIGHT = range(3)
BIN_BITS, PART_BITS = 7, 4  # a bin holds 2^7 patterns, a part of it 2^4
PARTS, LEAVES = 1 << (BIN_BITS - PART_BITS), 1 << PART_BITS


__all__ = [
    "BIN_BITS",
    "LEAVES",
    "NEGATIVE",
    "PARTS",
    "PART_BITS",
    "POSITIVE",
    "WEIGHT",
    "add_at",
    "count_keys",
    "count_positive",
    "grow",
    "parts_and_leaves",
    "select_nodes",
    "sum_from_above",
    "to_keys",
    "to_values",
    "with_pixels",
]
