"""Resizing and smoothing of maps as matrix products."""

import contextlib
import math
from functools import lru_cache

import numpy as np
import torch


def _bilinear_matrix(in_size: int, out_size: int) -> np.ndarray:
    """Bilinear interpolation along one axis (align_corners=False) as a matrix of shape (out_size, in_size)."""
    position = ((np.arange(out_size) + 0.5) * in_size / out_size - 0.5).clip(0, in_size - 1)
    return (1 - np.abs(position[:, None] - np.arange(in_size))).clip(0)


def _gaussian_matrix(size: int, sigma: float, truncate: float = 4.0) -> np.ndarray:
    """scipy's `gaussian_filter1d` with mode "reflect" along one axis as a matrix of shape (size, size)."""
    radius = int(truncate * sigma + 0.5)
    total = sum(math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1))

    def kernel(offsets: np.ndarray) -> np.ndarray:
        return (np.abs(offsets) <= radius) * np.exp(-0.5 * (offsets / sigma) ** 2) / total

    # Reflection about the edge of the border pixel, d c b a | a b c d | d c b a, repeated where the kernel is longer.
    column = np.arange(size, dtype=np.float64)
    row = column[:, None]
    repeats = radius // (2 * size) + 1
    shifts = [2 * size * repeat for repeat in range(-repeats, repeats + 1)]
    return sum(kernel(row - column + shift) + kernel(row + column + 1 + shift) for shift in shifts)


@lru_cache(maxsize=32)
def _numpy_matrix(in_size: int, out_size: int, sigma: float, dtype: type) -> np.ndarray:
    """Bilinear resize, then Gaussian smoothing, as one matrix of shape (out_size, in_size), computed in float64."""
    # In numpy: what is computed by torch while a graph is recorded is recorded with it, and what it computes under
    # inference_mode could not be used in training afterwards.
    matrix = _bilinear_matrix(in_size, out_size)
    return (_gaussian_matrix(out_size, sigma) @ matrix if sigma > 0 else matrix).astype(dtype)


# Not looked into by torch.compile and strict export, so that theirs is a constant as well. The matrices are no buffers
# of the model: those would be uninitialised after from_pretrained.
@torch.compiler.allow_in_graph
def _resize_and_smooth_matrix(
    in_size: int, out_size: int, sigma: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The matrix as a tensor, a constant in compiled, exported and traced graphs."""
    numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
    with torch.inference_mode(False):
        # In a graph with dynamic sizes they are symbols up to here.
        matrix = torch.from_numpy(_numpy_matrix(int(in_size), int(out_size), float(sigma), numpy_dtype))
        # Only where there is something to convert: it would be a step of the graph.
        return matrix if matrix.dtype == dtype and device.type == "cpu" else matrix.to(device, dtype)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """Mixed precision off for what follows; nothing where the device knows none (meta)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def resize_maps(maps: torch.Tensor, size: int | tuple[int, int], sigma: float = 0.0) -> torch.Tensor:
    """
    Resize maps bilinearly (align_corners=False, no antialiasing), then smooth them with a Gaussian as
    `scipy.ndimage.gaussian_filter(map, sigma)` does (mode "reflect", truncate 4). Both are linear and separable, so
    that one small matrix product per axis does the work on whatever device the maps are.

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`):
            Any number of maps; integers and booleans become float32.
        size (`int` or `tuple[int, int]`):
            Height and width wanted; one number for a square.
        sigma (`float`, defaults to 0.0):
            Standard deviation of the Gaussian in pixels of the result; 0 leaves it out.

    Returns:
        `torch.FloatTensor` of shape `(..., size[0], size[1])`.
    """
    if not maps.is_floating_point():
        maps = maps.float()
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = (
        _resize_and_smooth_matrix(maps.shape[axis], out, sigma, maps.dtype, maps.device)
        for axis, out in ((-2, height), (-1, width))
    )
    with without_autocast(maps.device.type):
        return rows @ maps @ columns.T


__all__ = ["resize_maps", "without_autocast"]
