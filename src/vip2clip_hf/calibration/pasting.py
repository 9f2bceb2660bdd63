"""Synthetic defects in real photos: scratches, blobs and misplaced patches at random places."""

import numpy as np
from PIL import Image

from ..data.synthetic.noise import smooth_noise


DEFECTS = ("scratch", "blob", "cut_paste")


def paste_defect(
    rng: np.random.Generator, image: Image.Image, defect: str, size: float
) -> tuple[Image.Image, np.ndarray]:
    """
    Paste a synthetic defect into a photo.

    Args:
        rng (`np.random.Generator`): source of randomness.
        image (`PIL.Image.Image`): the photo, in mode RGB.
        defect (`str`): one of `DEFECTS`.
        size (`float`): length of the defect, as a fraction of the shorter side of the photo.

    Returns:
        `tuple[PIL.Image.Image, np.ndarray]`: photo with the defect, and bool mask of shape `(height, width)`.

    Raises:
        ValueError: if the defect is unknown.
    """
    surface = np.asarray(image)
    height, width = surface.shape[:2]
    shorter = min(height, width)
    cy, cx = rng.uniform(0.2, 0.8, size=2) * (height, width)
    # Only the surroundings of the defect are computed. They are square, with the defect in the middle.
    half = int(np.ceil(shorter * size)) + 2
    top, left = int(cy) - half, int(cx) - half
    y, x = (np.mgrid[: 2 * half + 1, : 2 * half + 1] - half) / (shorter * size)  # the defect is about 1 long
    rows, columns = (np.arange(start, start + 2 * half + 1) for start in (top, left))
    # Pixels beyond the edge are those next to it.
    block = surface[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))] / 255
    if defect == "scratch":
        angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5)
        along = x * np.cos(angle) + y * np.sin(angle)
        across = -x * np.sin(angle) + y * np.cos(angle) - bend * along**2
        thickness = max(0.75 / (shorter * size), rng.uniform(0.03, 0.08))
        inside = (abs(along) < 0.5) & (abs(across) < thickness)
        changed = block + rng.choice([-1, 1]) * rng.uniform(0.25, 0.4)
    elif defect == "blob":
        ragged = 0.5 * (1 + 0.25 * smooth_noise(rng, len(x), max(1.0, half / 5)))
        inside = np.hypot(x, y * rng.uniform(0.7, 1.4)) < ragged
        changed = 0.35 * block + 0.65 * rng.uniform(0.0, 1.0, size=3)
    elif defect == "cut_paste":
        inside = (abs(x) < 0.5) & (abs(y) < 0.5 * rng.uniform(0.4, 1.0))
        shift = rng.integers(shorter // 4, max(shorter // 4 + 1, shorter // 2), size=2) * rng.choice([-1, 1], size=2)
        source = surface[np.ix_((rows + shift[0]) % height, (columns + shift[1]) % width)] / 255
        changed = np.rot90(source) * rng.uniform(0.6, 0.8)
    else:
        raise ValueError(f"defect is {defect!r}; expected one of {', '.join(DEFECTS)}.")
    inside[half, half] = True
    seen = inside & ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    mask = np.zeros((height, width), dtype=bool)
    places = np.argwhere(seen) + np.array([top, left])
    mask[tuple(places.T)] = True
    result = np.array(image)
    result[tuple(places.T)] = np.rint(changed[seen].clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(result), mask


__all__ = ["DEFECTS", "paste_defect"]
