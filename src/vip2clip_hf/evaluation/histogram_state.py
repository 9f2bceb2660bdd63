"""Compact form of the state of a [`PixelHistogram`]: about a twentieth of its arrays."""

import io
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from .histogram_counts import POSITIVE, WEIGHT


# Arrays of keys and counts in the state of a histogram, by level.
_LEVELS = (("bin_numbers", "bin_counts"), ("part_keys", "part_counts"), ("leaf_keys", "leaf_counts"))


def pack_state(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """
    Pack a state without loss.

    Args:
        state (`Mapping[str, np.ndarray]`): result of `PixelHistogram.state`.

    Returns:
        `np.ndarray`, uint8, 1-D: the compressed state.
    """
    packed = {"range": state["range"]}
    for name, counts_name in _LEVELS:
        order = np.argsort(state[name])
        keys, counts = state[name][order], state[counts_name][:, order]
        packed[name] = _small(np.diff(keys, prepend=0))
        packed[counts_name] = _small(counts[:WEIGHT])
        # Only positive values have a weight.
        packed[f"{counts_name}.weights"] = counts[WEIGHT, counts[POSITIVE] > 0]
    buffer = io.BytesIO()
    np.savez(buffer, **packed)  # type: ignore[arg-type]  # numpy checks the dict against its bool option
    return np.frombuffer(zlib.compress(buffer.getbuffer(), 1), dtype=np.uint8)


def unpack_state(packed: np.ndarray) -> dict[str, np.ndarray]:
    """
    Unpack a state.

    Args:
        packed (`np.ndarray`, uint8, 1-D): result of `pack_state`.

    Returns:
        `dict[str, np.ndarray]`: the state, for `PixelHistogram.add_state`.

    Raises:
        ValueError: if the state is damaged.
    """
    try:
        content = zlib.decompress(np.asarray(packed, dtype=np.uint8).tobytes())
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = dict(file)
        state = {"range": found["range"]}
        for name, counts_name in _LEVELS:
            state[name] = np.cumsum(found[name], dtype=np.int64)
            counts = np.zeros((3, len(state[name])))
            counts[:WEIGHT] = found[counts_name]
            counts[WEIGHT, counts[POSITIVE] > 0] = found[f"{counts_name}.weights"]
            state[counts_name] = counts
    except (KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"The state of the histogram is damaged: {error}.") from error
    return state


def _small(numbers: np.ndarray) -> np.ndarray:
    """Convert whole numbers to the smallest unsigned type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


__all__ = ["pack_state", "unpack_state"]
