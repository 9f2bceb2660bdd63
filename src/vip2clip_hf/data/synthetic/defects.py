"""Synthetic defects in the style of DAGM 2007: scratches, blobs, misplaced patches and missing material."""

import numpy as np

from .noise import smooth_noise


DEFECTS = ("scratch", "blob", "cut_paste", "missing")


def add_defect(
    rng: np.random.Generator, defect: str, surface: np.ndarray, plain: np.ndarray, parts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Add a defect to an image.

    Args:
        rng (`np.random.Generator`): source of randomness.
        defect (`str`): one of `DEFECTS`.
        surface (`np.ndarray`): normal image of shape (size, size, 3) in [0, 1].
        plain (`np.ndarray`): the image without pattern or parts, same shape. Shown where something is missing.
        parts (`np.ndarray`, *optional*): index of the part at every pixel, of shape (size, size), 0 for none.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: image of shape (size, size, 3) in [0, 1], and bool mask of shape (size, size).

    Raises:
        ValueError: if the defect is unknown.
    """
    size = len(surface)
    y, x = np.mgrid[:size, :size] / size
    cy, cx = rng.uniform(0.25, 0.75, size=2)
    if defect == "scratch":
        angle, length, bend = rng.uniform(0, np.pi), rng.uniform(0.15, 0.3), rng.uniform(-1.5, 1.5)
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle) - bend * along**2
        mask = (abs(along) < length) & (abs(across) < rng.uniform(0.008, 0.02))
        changed = surface + rng.choice([-1, 1]) * rng.uniform(0.25, 0.4)
    elif defect == "blob":
        radius = rng.uniform(0.05, 0.12)
        ragged = radius * (1 + 0.25 * smooth_noise(rng, size, size / 20))
        mask = np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4)) < ragged
        changed = 0.35 * surface + 0.65 * rng.uniform(0.0, 1.0, size=3)
    elif defect == "cut_paste":
        half = rng.uniform(0.06, 0.12, size=2)
        mask = (abs(x - cx) < half[0]) & (abs(y - cy) < half[1])
        changed = np.roll(np.rot90(surface), rng.integers(size, size=2), axis=(0, 1)) * rng.uniform(0.6, 0.8)
    elif defect == "missing":
        if parts is None:  # a hole with a ragged edge
            axes = rng.uniform(0.04, 0.1, size=2)
            mask = np.hypot((x - cx) / axes[0], (y - cy) / axes[1]) < 1 + 0.15 * smooth_noise(rng, size, size / 25)
            changed = plain * rng.uniform(0.3, 0.5)
        else:  # the whole part nearest to the chosen point
            distance = np.where(parts > 0, np.hypot(x - cx, y - cy), np.inf)
            mask = parts == parts.flat[distance.argmin()]
            changed = plain
    else:
        raise ValueError(f"defect is {defect!r}; expected one of {', '.join(DEFECTS)}.")
    return np.where(mask[..., None], changed, surface).clip(0, 1), mask


__all__ = ["DEFECTS", "add_defect"]
