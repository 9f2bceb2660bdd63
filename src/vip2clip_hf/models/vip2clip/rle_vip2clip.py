"""Masks as text: run-length encoding in the compressed form of COCO. Needs numpy only."""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt


# A character holds 5 bits of a number and a bit that says that more follow, plus an offset to printable ASCII.
BITS, MORE, SIGN, OFFSET = 5, 0x20, 0x10, 48
# 60 bits: enough for a difference of two runs of any mask that fits in memory, and no overflow in 64 bits.
MAX_CHARACTERS = 12


class MaskRLE(TypedDict):
    """
    A mask in the compressed run-length encoding of COCO, as pycocotools reads it.

    Args:
        size (`list[int]`): height and width.
        counts (`str`): lengths of the runs, alternately of `False` and `True` pixels, column by column.
    """

    size: list[int]
    counts: str


def encode_rle(mask: Any) -> MaskRLE:
    """
    Encode a mask in the compressed run-length encoding of COCO.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): bool, or numbers of which all except 0 belong to the mask.

    Returns:
        `dict`: `size` (`list[int]`: height and width) and `counts` (`str`, ASCII).

    Raises:
        ValueError: if the mask does not have two axes.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}; expected (height, width).")
    pixels = (mask != 0).ravel(order="F")  # column by column
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0], changes, [pixels.size]]).astype(np.int64)
    counts = np.diff(edges)
    if pixels.size and pixels[0]:  # the first run is always of False pixels
        counts = np.concatenate([np.zeros(1, dtype=np.int64), counts])
    return {"size": [int(side) for side in mask.shape], "counts": _to_text(counts)}


def decode_rle(encoded: Mapping[str, Any], max_pixels: int | None = None) -> npt.NDArray[np.bool_]:
    """
    Decode a mask in the compressed run-length encoding of COCO.

    Args:
        encoded (`Mapping[str, Any]`): `size` (height and width) and `counts` (`str` or `bytes`).
        max_pixels (`int`, *optional*): largest number of pixels to accept. A short text can describe a mask that does
            not fit in memory.

    Returns:
        `np.ndarray` of shape `(height, width)`: bool.

    Raises:
        ValueError: if the encoding is not valid, or the mask has more pixels.
    """
    height, width = check_size(encoded.get("size"), max_pixels)
    counts = encoded.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not isinstance(counts, str):
        raise ValueError(f"counts is of type {type(counts).__name__}; expected a str, the compressed form of COCO.")
    runs = _to_runs(counts)
    # Check each run first: the sum of large numbers can overflow.
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise ValueError(f"counts does not describe {height} x {width} pixels; expected runs that add up to them.")
    values = (np.arange(len(runs)) % 2).astype(bool)
    return np.ascontiguousarray(np.repeat(values, runs).reshape((height, width), order="F"))


def check_size(size: Any, max_pixels: int | None = None) -> tuple[int, int]:
    """
    Check the size of a mask or map.

    Args:
        size: height and width.
        max_pixels (`int`, *optional*): largest number of pixels to accept.

    Returns:
        `tuple[int, int]`: height and width.

    Raises:
        ValueError: if it is not a pair of integers of at least 0, or has more pixels.
    """
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    if not is_pair or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in size):
        raise ValueError(f"size is {str(size)[:100]}; expected [height, width].")
    if max_pixels is not None and size[0] * size[1] > max_pixels:
        raise ValueError(f"size is {list(size)}; expected at most {max_pixels} pixels.")
    return size[0], size[1]


def _to_text(counts: npt.NDArray[np.int64]) -> str:
    """Write numbers as text. From the fourth on, the difference to the number before the previous one is written."""
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    groups = np.zeros((len(numbers), MAX_CHARACTERS), dtype=np.uint8)
    used = np.zeros(groups.shape, dtype=bool)
    unfinished = np.ones(len(numbers), dtype=bool)
    for position in range(MAX_CHARACTERS):
        if not unfinished.any():
            break
        used[:, position] = unfinished
        bits = numbers & (2**BITS - 1)
        numbers >>= BITS  # keeps the sign
        # Done if the rest repeats the sign bit of this character.
        unfinished = unfinished & (numbers != np.where(bits & SIGN, -1, 0))
        groups[:, position] = bits + OFFSET + np.where(unfinished, MORE, 0)
    return groups[used].tobytes().decode("ascii")


def _to_runs(counts: str) -> npt.NDArray[np.int64]:
    """Read what [`_to_text`] writes."""
    try:
        codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - OFFSET
    except UnicodeEncodeError as error:
        raise ValueError("counts contains characters that are not ASCII; expected the compressed form of COCO.") from (
            error
        )
    if not len(codes):
        return np.zeros(0, dtype=np.int64)
    last = (codes & MORE) == 0
    if (codes < 0).any() or (codes >= 2 * MORE).any() or not last[-1]:
        raise ValueError(f"counts {counts[:40]!r} is not valid; expected the compressed form of COCO.")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_CHARACTERS:
        raise ValueError(f"counts {counts[:40]!r} contains a number that is too large.")
    shift = BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & (2**BITS - 1)) << shift, starts)
    numbers -= np.where(codes[ends] & SIGN, np.int64(1) << (BITS * lengths), 0)
    # Undo the differences: numbers 1, 3, 5, ... and 2, 4, 6, ... are sums.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


__all__ = ["MaskRLE", "check_size", "decode_rle", "encode_rle"]
