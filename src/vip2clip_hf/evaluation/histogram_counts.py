"""Array functions for [`PixelHistogram`]: sortable keys of float32 values, counts and cumulative sums."""

import numpy as np


# Rows of every array of counts, of shape (3, ...): negative values, positive values, weights of the positive values.
NEGATIVE, POSITIVE, WEIGHT = range(3)
BIN_BITS, PART_BITS = 7, 4  # a bin covers 2^7 bit patterns, a part of a bin 2^4
PARTS, LEAVES = 1 << (BIN_BITS - PART_BITS), 1 << PART_BITS


def to_keys(values: np.ndarray) -> np.ndarray:
    """
    Convert values to integers with the same order. Minus zero and zero have the same key.

    Args:
        values (`np.ndarray`, float32): the values, without NaN.

    Returns:
        `np.ndarray`, uint32: the keys.
    """
    bits = (values + np.float32(0)).view(np.uint32)
    if bits.size and bits.max() >> 31:
        return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    bits |= np.uint32(1 << 31)
    return bits


def to_values(keys: np.ndarray) -> np.ndarray:
    """
    Convert keys back to values.

    Args:
        keys (`np.ndarray`): keys from `to_keys`, of any integer dtype.

    Returns:
        `np.ndarray`, float32: the values.
    """
    keys = np.asarray(keys).astype(np.uint32)
    return np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).astype(np.uint32).view(np.float32)


def grow(array: np.ndarray, size: int, fill: float = 0) -> np.ndarray:
    """
    Copy an array into a larger one.

    Args:
        array (`np.ndarray`): the array.
        size (`int`): new size of the last axis.
        fill (`float`, defaults to 0): value of the new entries.

    Returns:
        `np.ndarray`: the larger array, with the same dtype.
    """
    grown = np.full((*array.shape[:-1], size), fill, dtype=array.dtype)
    grown[..., : array.shape[-1]] = array
    return grown


def count_keys(indices: np.ndarray, positive_indices: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """
    Count values by index.

    Args:
        indices (`np.ndarray`): index of every value, in [0, `size`).
        positive_indices (`np.ndarray`): index of every positive value.
        weights (`np.ndarray`): weight of every positive value.
        size (`int`): number of indices.

    Returns:
        `np.ndarray`: negatives, positives and weights, of shape `(3, size)`.
    """
    counts = np.zeros((3, size))
    counts[NEGATIVE] = np.bincount(indices, minlength=size)
    count_positive(counts, positive_indices, weights)
    return counts


def count_positive(counts: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> None:
    """
    Move positive values from the row of negatives, which contains all values so far, to their own rows.

    Args:
        counts (`np.ndarray` of shape `(3, size)`): the counts, changed in place.
        indices (`np.ndarray`): index of every positive value.
        weights (`np.ndarray`): weight of every positive value.
    """
    if indices.size:
        size = counts.shape[1]
        counts[POSITIVE] = np.bincount(indices, minlength=size)
        counts[WEIGHT] = np.bincount(indices, weights=weights, minlength=size)
        counts[NEGATIVE] -= counts[POSITIVE]


def add_at(counts: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
    """
    Add values at indices that may repeat.

    Args:
        counts (`np.ndarray` of shape `(3, size)`): the counts, changed in place.
        indices (`np.ndarray` of shape `(n,)`): the indices.
        values (`np.ndarray` of shape `(3, n)`): the values.
    """
    for row, added in zip(counts, values):
        np.add.at(row, indices, added)


def with_pixels(mass: np.ndarray) -> np.ndarray:
    """
    Return the number of negatives and of pixels (negatives and positives).

    Args:
        mass (`np.ndarray` of shape `(3, ...)`): counts.

    Returns:
        `np.ndarray` of shape `(2, ...)`: negatives and pixels.
    """
    return np.stack([mass[NEGATIVE], mass[NEGATIVE] + mass[POSITIVE]])


def sum_from_above(mass: np.ndarray) -> np.ndarray:
    """
    Return the number of negatives and of pixels in and above every bin.

    Args:
        mass (`np.ndarray` of shape `(3, ..., bins)`): counts, in ascending order of the bins.

    Returns:
        `np.ndarray` of shape `(2, ..., bins)`: negatives and pixels.
    """
    from_above = with_pixels(mass)
    backwards = from_above[..., ::-1]
    np.cumsum(backwards, axis=-1, out=backwards)
    return from_above


def select_nodes(nodes: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Select the values that are in divided bins.

    Args:
        nodes (`np.ndarray`): number of the node that divides each bin, -1 if the bin is not divided.
        indices (`np.ndarray`): index of the bin of every value.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: positions of the selected values, and their nodes.
    """
    node = nodes.take(indices)
    chosen = (node >= 0).nonzero()[0]
    return chosen, node[chosen].astype(np.intp)


def parts_and_leaves(keys: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Find the part and the leaf of every key.

    Args:
        keys (`np.ndarray`, uint32): keys in divided bins.
        nodes (`np.ndarray`, intp): node of every key. It is overwritten.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: index of the part, intp, and number of the leaf in the part, uint8.
    """
    nodes *= PARTS
    nodes += (keys >> PART_BITS) & (PARTS - 1)
    return nodes, (keys & (LEAVES - 1)).astype(np.uint8)


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
