"""Generated pictures of textures with defects and their exact masks, for trying things out and for tests."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


CATEGORIES = ("stripes", "grains", "weave", "waves")
DEFECTS = ("scratch", "blob", "patch")


def _noise(rng: np.random.Generator, size: int, radius: float) -> np.ndarray:
    """Gaussian noise smoothed over `radius` pixels, with mean 0 and standard deviation 1, (size, size)."""
    frequency = np.fft.fftfreq(size)
    filtered = np.exp(-2 * (np.pi * radius) ** 2 * (frequency[:, None] ** 2 + frequency**2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * filtered).real
    return (smooth - smooth.mean()) / smooth.std()


def _texture(rng: np.random.Generator, category: str, size: int) -> np.ndarray:
    """A normal surface, (size, size, 3) in [0, 1]."""
    y, x = np.mgrid[:size, :size] / size
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    if category == "stripes":
        pattern = np.sin(2 * np.pi * rng.uniform(10, 14) * along + phase)
    elif category == "grains":
        pattern = _noise(rng, size, size / 80)
    elif category == "weave":
        frequency = 2 * np.pi * rng.uniform(12, 16)
        pattern = np.sin(frequency * along + phase) * np.sin(frequency * across)
    elif category == "waves":
        pattern = np.sin(2 * np.pi * (rng.uniform(5, 7) * along + 0.3 * np.sin(2 * np.pi * 2 * across)) + phase)
    else:
        raise ValueError(f"category is {category!r}; expected one of {', '.join(CATEGORIES)}.")
    shading = _noise(rng, size, size / 5)
    gray = 0.5 + 0.05 * pattern + 0.02 * shading + 0.015 * rng.standard_normal((size, size))
    color = rng.uniform(0.8, 1.2, size=3)
    return (gray[..., None] * color).clip(0, 1)


def _defect(rng: np.random.Generator, defect: str, surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface with one defect, and where it is, bool (size, size)."""
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
        ragged = radius * (1 + 0.25 * _noise(rng, size, size / 20))
        mask = np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4)) < ragged
        changed = 0.35 * surface + 0.65 * rng.uniform(0.0, 1.0, size=3)
    elif defect == "patch":
        half = rng.uniform(0.06, 0.12, size=2)
        mask = (abs(x - cx) < half[0]) & (abs(y - cy) < half[1])
        changed = np.roll(np.rot90(surface), rng.integers(size, size=2), axis=(0, 1)) * rng.uniform(0.6, 0.8)
    else:
        raise ValueError(f"defect is {defect!r}; expected one of {', '.join(DEFECTS)}.")
    return np.where(mask[..., None], changed, surface).clip(0, 1), mask


def generate_image(
    category: str, defect: str | None = None, size: int = 128, seed: int = 0
) -> tuple[Image.Image, Image.Image]:
    """
    One picture and its mask, the same for the same arguments.

    Args:
        category (`str`): one of `CATEGORIES`.
        defect (`str`, *optional*): one of `DEFECTS`; a normal surface without.
        size (`int`, defaults to 128): side in pixels.
        seed (`int`, defaults to 0): which picture.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: picture (RGB) and mask (L, 255 where the defect is).

    Raises:
        ValueError: an unknown category or defect.
    """
    rng = np.random.default_rng([seed, size])
    surface, mask = _texture(rng, category, size), np.zeros((size, size), dtype=bool)
    if defect is not None:
        surface, mask = _defect(rng, defect, surface)
    picture = Image.fromarray(np.rint(surface * 255).astype(np.uint8))
    return picture, Image.fromarray(mask.astype(np.uint8) * 255)


def write_dataset(
    root: str | os.PathLike,
    categories: tuple[str, ...] = CATEGORIES,
    num_normal: int = 8,
    num_anomalous: int = 4,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """
    A data set in the layout of MVTec AD (test split only), the same for the same arguments.

    Args:
        root (`str` or `os.PathLike`): folder to write.
        categories (`tuple[str, ...]`): which of `CATEGORIES`.
        num_normal (`int`, defaults to 8): normal pictures per category.
        num_anomalous (`int`, defaults to 4): pictures per category and kind of defect.
        size (`int`, defaults to 128): side in pixels.
        seed (`int`, defaults to 0): which data set.

    Returns:
        `pathlib.Path`: the folder.
    """
    root = Path(root)
    for category in categories:
        for kind, (defect, count) in enumerate([(None, num_normal), *((d, num_anomalous) for d in DEFECTS)]):
            folder = root / category / "test" / (defect or "good")
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                number = ((seed * len(CATEGORIES) + CATEGORIES.index(category)) * 10 + kind) * 10_000 + index
                picture, mask = generate_image(category, defect, size, number)
                picture.save(folder / f"{index:03d}.png")
                if defect is not None:
                    masks = root / category / "ground_truth" / defect
                    masks.mkdir(parents=True, exist_ok=True)
                    mask.save(masks / f"{index:03d}_mask.png")
    return root


__all__ = ["CATEGORIES", "DEFECTS", "generate_image", "write_dataset"]
