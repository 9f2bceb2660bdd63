"""Smooth random fields."""

import numpy as np


def smooth_noise(rng: np.random.Generator, size: int, radius: float | tuple[float, float]) -> np.ndarray:
    """Gaussian noise smoothed over `radius` pixels (vertical, horizontal), with mean 0 and standard deviation 1. The
    shape is (size, size)."""
    down, across = radius if isinstance(radius, tuple) else (radius, radius)
    frequency = np.fft.fftfreq(size)
    filtered = np.exp(-2 * np.pi**2 * ((down * frequency[:, None]) ** 2 + (across * frequency) ** 2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * filtered).real
    return (smooth - smooth.mean()) / smooth.std()


__all__ = ["smooth_noise"]
