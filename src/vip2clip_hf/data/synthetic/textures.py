"""Synthetic surfaces: textures in the style of DAGM 2007, and one made of separate parts."""

import numpy as np

from .noise import smooth_noise
from .scenes import SCENES, scene


CATEGORIES = ("stripes", "grains", "weave", "waves", "brushed", "dots")
ALL = (*CATEGORIES, *SCENES)


def texture(rng: np.random.Generator, category: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """
    Generate a normal image.

    Args:
        rng (`np.random.Generator`): source of randomness.
        category (`str`): one of `CATEGORIES` or `SCENES`.
        size (`int`): width and height in pixels.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray | None]`: image and image without pattern or parts, both of shape
        (size, size, 3) in [0, 1], and the index of the part at every pixel, of shape (size, size), 0 for none. The
        index is None if the image has no parts.

    Raises:
        ImportError: if `category` is in `SCENES` and `scipy` is not installed.
        ValueError: if the category is unknown.
    """
    if category in SCENES:
        return scene(rng, category, size)
    y, x = np.mgrid[:size, :size] / size
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    parts = None
    if category == "stripes":
        pattern = np.sin(2 * np.pi * rng.uniform(10, 14) * along + phase)
    elif category == "grains":
        pattern = smooth_noise(rng, size, size / 80)
    elif category == "weave":
        frequency = 2 * np.pi * rng.uniform(12, 16)
        pattern = np.sin(frequency * along + phase) * np.sin(frequency * across)
    elif category == "waves":
        pattern = np.sin(2 * np.pi * (rng.uniform(5, 7) * along + 0.3 * np.sin(2 * np.pi * 2 * across)) + phase)
    elif category == "brushed":
        pattern = smooth_noise(rng, size, (size / 100, size / 8))
    elif category == "dots":
        count, radius = rng.integers(5, 8), rng.uniform(0.25, 0.35)
        column, row = np.floor(x * count), np.floor(y * count)
        inside = np.hypot(x * count - column - 0.5, y * count - row - 0.5) < radius
        parts = np.where(inside, 1 + column + count * row, 0).astype(int)
        pattern = np.where(inside, rng.choice([-3, 3]), 0.0)
    else:
        raise ValueError(f"category is {category!r}; expected one of {', '.join(ALL)}.")
    shading = smooth_noise(rng, size, size / 5)
    plain = 0.5 + 0.02 * shading + 0.015 * rng.standard_normal((size, size))
    color = rng.uniform(0.8, 1.2, size=3)
    surface = (plain + 0.05 * pattern)[..., None] * color
    return surface.clip(0, 1), (plain[..., None] * color).clip(0, 1), parts


__all__ = ["ALL", "CATEGORIES", "texture"]
