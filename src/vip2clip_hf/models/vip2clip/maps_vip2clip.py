"""Resize and smooth maps with matrix products."""

import contextlib
import math
from functools import lru_cache

import numpy as np
import torch


def _bilinear_matrix(in_size: int, out_size: int) -> np.ndarray:
    """Return bilinear interpolation along one axis (align_corners=False) as a matrix of shape (out_size, in_size)."""
    position = ((np.arange(out_size) + 0.5) * in_size / out_size - 0.5).clip(0, in_size - 1)
    return (1 - np.abs(position[:, None] - np.arange(in_size))).clip(0)


def _gaussian_matrix(size: int, sigma: float, truncate: float = 4.0) -> np.ndarray:
    """Return scipy's `gaussian_filter1d` along one axis, with mode "reflect", as a matrix of shape (size, size)."""
    radius = int(truncate * sigma + 0.5)
    total = sum(math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1))

    def kernel(offsets: np.ndarray) -> np.ndarray:
        return (np.abs(offsets) <= radius) * np.exp(-0.5 * (offsets / sigma) ** 2) / total

    # Reflect about the outer edge of the border pixels: d c b a | a b c d | d c b a. Repeat for longer kernels.
    column = np.arange(size, dtype=np.float64)
    row = column[:, None]
    repeats = radius // (2 * size) + 1
    shifts = [2 * size * repeat for repeat in range(-repeats, repeats + 1)]
    return sum(kernel(row - column + shift) + kernel(row + column + 1 + shift) for shift in shifts)


@lru_cache(maxsize=32)
def _numpy_matrix(in_size: int, out_size: int, sigma: float, dtype: type) -> np.ndarray:
    """Return resizing and smoothing as one matrix of shape (out_size, in_size), computed in float64."""
    # Computed by numpy. Operations of torch would be recorded in a graph, and tensors computed in inference mode
    # cannot be used for training.
    matrix = _bilinear_matrix(in_size, out_size)
    return (_gaussian_matrix(out_size, sigma) @ matrix if sigma > 0 else matrix).astype(dtype)


# torch.compile and strict export do not trace into this function, so the matrix is a constant of their graphs. It is
# not a buffer of the model, because from_pretrained would leave the buffer uninitialized.
@torch.compiler.allow_in_graph
def _resize_and_smooth_matrix(
    in_size: int, out_size: int, sigma: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the matrix as a tensor that is a constant in compiled, exported and traced graphs."""
    numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
    with torch.inference_mode(False):
        # Dynamic sizes are symbolic. int() and float() make them concrete.
        matrix = torch.from_numpy(_numpy_matrix(int(in_size), int(out_size), float(sigma), numpy_dtype))
        # Convert only if necessary, because the conversion would be an operation of the graph.
        return matrix if matrix.dtype == dtype and device.type == "cpu" else matrix.to(device, dtype)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """
    Return a context manager that disables automatic mixed precision.

    Args:
        device_type (`str`): type of the device, such as `"cuda"`. Devices without autocast (`"meta"`) are allowed.

    Returns:
        `contextlib.AbstractContextManager`: the context manager.
    """
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def resize_maps(maps: torch.Tensor, size: int | tuple[int, int], sigma: float = 0.0) -> torch.Tensor:
    """
    Resize maps with bilinear interpolation, then smooth them with a Gaussian.

    Equals `torch.nn.functional.interpolate` (align_corners=False, no antialiasing) followed by
    `scipy.ndimage.gaussian_filter` (mode "reflect", truncate 4). Both are linear and separable, so a small matrix
    product per axis computes them on any device.

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`):
            Maps. Integers and booleans are converted to float32.
        size (`int` or `tuple[int, int]`):
            Height and width of the result, or the side of a square.
        sigma (`float`, defaults to 0.0):
            Standard deviation of the Gaussian, in pixels of the result. 0 disables smoothing.

    Returns:
        `torch.FloatTensor` of shape `(..., size[0], size[1])`: the maps, on the device of the input.
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
