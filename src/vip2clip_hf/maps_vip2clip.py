"""Resizing and smoothing of maps as matrix products."""

from functools import lru_cache

import numpy as np
import torch


def _bilinear_matrix(in_size: int, out_size: int) -> np.ndarray:
    """Bilinear interpolation along one axis (align_corners=False) as a matrix of shape (out_size, in_size)."""
    position = np.clip((np.arange(out_size) + 0.5) * in_size / out_size - 0.5, 0, in_size - 1)
    low = np.minimum(position.astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    matrix = np.zeros((out_size, in_size))
    rows = np.arange(out_size)
    np.add.at(matrix, (rows, low), 1 - (position - low))
    np.add.at(matrix, (rows, high), position - low)
    return matrix


def _gaussian_matrix(size: int, sigma: float, truncate: float = 4.0) -> np.ndarray:
    """scipy's `gaussian_filter1d` with mode "reflect" along one axis as a matrix of shape (size, size)."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / sigma**2 * offsets**2) if radius else np.ones(1)
    weights /= weights.sum()
    # Reflection about the edge of the border pixel, d c b a | a b c d | d c b a, repeated where the kernel is longer.
    source = (np.arange(size)[:, None] + offsets) % (2 * size)
    source = np.where(source < size, source, 2 * size - 1 - source)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], source), weights)
    return matrix


@lru_cache(maxsize=32)
def _resize_and_smooth_matrix(in_size: int, out_size: int, sigma: float) -> np.ndarray:
    """Bilinear resize, then Gaussian smoothing, as one matrix of shape (out_size, in_size)."""
    matrix = _bilinear_matrix(in_size, out_size)
    return _gaussian_matrix(out_size, sigma) @ matrix if sigma > 0 else matrix


def resize_maps(maps: torch.Tensor, size: int | tuple[int, int], sigma: float = 0.0) -> torch.Tensor:
    """
    Resize maps bilinearly (align_corners=False, no antialiasing), then smooth them with a Gaussian as
    `scipy.ndimage.gaussian_filter(map, sigma)` does (mode "reflect", truncate 4). Both are linear and separable, so
    that one small matrix product per axis does the work on whatever device the maps are.

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`):
            Any number of maps.
        size (`int` or `tuple[int, int]`):
            Height and width wanted; one number for a square.
        sigma (`float`, defaults to 0.0):
            Standard deviation of the Gaussian in pixels of the result; 0 leaves it out.

    Returns:
        `torch.FloatTensor` of shape `(..., size[0], size[1])`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    # Matrices are built from Python numbers at each call: a tensor kept on the module would be uninitialised after
    # from_pretrained, one kept in a cache could have been made under inference_mode.
    rows, columns = (
        torch.from_numpy(_resize_and_smooth_matrix(maps.shape[axis], out, float(sigma))).to(maps.dtype).to(maps.device)
        for axis, out in ((-2, height), (-1, width))
    )
    return rows @ maps @ columns.T


__all__ = ["resize_maps"]
