"""Resizing and smoothing of maps as matrix products."""

import contextlib
import math
from functools import lru_cache

import numpy as np
import torch


def _bilinear_matrix(in_size: int, out_size: int) -> torch.Tensor:
    """Bilinear interpolation along one axis (align_corners=False) as a matrix of shape (out_size, in_size)."""
    options = {"dtype": torch.float64, "device": "cpu"}
    position = ((torch.arange(out_size, **options) + 0.5) * in_size / out_size - 0.5).clamp(0, in_size - 1)
    return (1 - (position[:, None] - torch.arange(in_size, **options)).abs()).clamp_min(0)


def _gaussian_matrix(size: int, sigma: float, truncate: float = 4.0) -> torch.Tensor:
    """scipy's `gaussian_filter1d` with mode "reflect" along one axis as a matrix of shape (size, size)."""
    radius = int(truncate * sigma + 0.5)
    total = sum(math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1))

    def kernel(offsets: torch.Tensor) -> torch.Tensor:
        inside = (offsets.abs() <= radius).to(offsets.dtype)
        return inside * torch.exp(-0.5 * (offsets / sigma) ** 2) / total

    # Reflection about the edge of the border pixel, d c b a | a b c d | d c b a, repeated where the kernel is longer.
    column = torch.arange(size, dtype=torch.float64, device="cpu")
    row = column[:, None]
    repeats = radius // (2 * size) + 1
    shifts = [2 * size * repeat for repeat in range(-repeats, repeats + 1)]
    return sum(kernel(row - column + shift) + kernel(row + column + 1 + shift) for shift in shifts)


def _resize_and_smooth_matrix(in_size: int, out_size: int, sigma: float) -> torch.Tensor:
    """Bilinear resize, then Gaussian smoothing, as one matrix of shape (out_size, in_size), float64 on the CPU."""
    matrix = _bilinear_matrix(in_size, out_size)
    return _gaussian_matrix(out_size, sigma) @ matrix if sigma > 0 else matrix


@lru_cache(maxsize=32)
def _cached_matrix(in_size: int, out_size: int, sigma: float) -> np.ndarray:
    # As numpy: a tensor made under inference_mode could not be used in training afterwards.
    return _resize_and_smooth_matrix(in_size, out_size, sigma).numpy()


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
    # A compiled graph cannot look into the cache; it takes the matrices as constants of its own. They are not buffers:
    # those would be uninitialised after from_pretrained.
    compiling = torch.compiler.is_compiling()
    matrices = []
    for axis, out in ((-2, height), (-1, width)):
        arguments = int(maps.shape[axis]), out, float(sigma)
        matrix = _resize_and_smooth_matrix(*arguments) if compiling else torch.from_numpy(_cached_matrix(*arguments))
        matrices.append(matrix.to(maps.dtype).to(maps.device))
    with without_autocast(maps.device.type):
        return matrices[0] @ maps @ matrices[1].T


__all__ = ["resize_maps", "without_autocast"]
