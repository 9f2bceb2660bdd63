"""Generated pictures of surfaces with defects and their exact masks: a data set out of nothing, for trying things out
and for tests.

The surfaces are textures in the manner of DAGM 2007, and one of separate parts (CATEGORIES); materials, objects and
printed matter of any look (SCENES). The defects are those of DAGM: scratches, blobs, pieces from elsewhere, material
that is missing.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import new_folder
from .scenes import SCENES, scene, smooth_noise


CATEGORIES = ("stripes", "grains", "weave", "waves", "brushed", "dots")
ALL = (*CATEGORIES, *SCENES)
DEFECTS = ("scratch", "blob", "cut_paste", "missing")


def _texture(rng: np.random.Generator, category: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A normal surface and what is left where its pattern is missing, both (size, size, 3) in [0, 1], and the number
    of the part every pixel belongs to (0 for none), where the surface has parts."""
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


def _defect(
    rng: np.random.Generator, defect: str, surface: np.ndarray, plain: np.ndarray, parts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
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
        ragged = radius * (1 + 0.25 * smooth_noise(rng, size, size / 20))
        mask = np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4)) < ragged
        changed = 0.35 * surface + 0.65 * rng.uniform(0.0, 1.0, size=3)
    elif defect == "cut_paste":
        half = rng.uniform(0.06, 0.12, size=2)
        mask = (abs(x - cx) < half[0]) & (abs(y - cy) < half[1])
        changed = np.roll(np.rot90(surface), rng.integers(size, size=2), axis=(0, 1)) * rng.uniform(0.6, 0.8)
    elif defect == "missing":
        if parts is None:  # material: a hole with a ragged edge
            axes = rng.uniform(0.04, 0.1, size=2)
            mask = np.hypot((x - cx) / axes[0], (y - cy) / axes[1]) < 1 + 0.15 * smooth_noise(rng, size, size / 25)
            changed = plain * rng.uniform(0.3, 0.5)
        else:  # a whole part, the nearest to the chosen place
            distance = np.where(parts > 0, np.hypot(x - cx, y - cy), np.inf)
            mask = parts == parts.flat[distance.argmin()]
            changed = plain
    else:
        raise ValueError(f"defect is {defect!r}; expected one of {', '.join(DEFECTS)}.")
    return np.where(mask[..., None], changed, surface).clip(0, 1), mask


def generate_image(
    category: str, defect: str | None = None, size: int = 128, seed: int = 0
) -> tuple[Image.Image, Image.Image]:
    """
    One picture and its mask, the same for the same arguments.

    Args:
        category (`str`): one of `CATEGORIES` or `SCENES`.
        defect (`str`, *optional*): one of `DEFECTS`; a normal surface without.
        size (`int`, defaults to 128): side in pixels.
        seed (`int`, defaults to 0): which picture.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: picture (RGB) and mask (L, 255 where the defect is).

    Raises:
        ValueError: an unknown category or defect.
    """
    rng = np.random.default_rng([seed, size])
    surface, plain, parts = _texture(rng, category, size)
    mask = np.zeros((size, size), dtype=bool)
    if defect is not None:
        surface, mask = _defect(rng, defect, surface, plain, parts)
    picture = Image.fromarray(np.rint(surface * 255).astype(np.uint8))
    return picture, Image.fromarray(mask.astype(np.uint8) * 255)


def write_dataset(
    root: str | os.PathLike,
    categories: tuple[str, ...] = CATEGORIES,
    num_normal: int = 8,
    num_anomalous: int = 4,
    size: int = 128,
    seed: int = 0,
    num_train: int = 0,
) -> Path:
    """
    A data set in the layout of MVTec AD, the same for the same arguments.

    It is written aside and then moved, so that a folder with a part of it is never left behind.

    Args:
        root (`str` or `os.PathLike`): folder to write; must be empty or not exist.
        categories (`tuple[str, ...]`): which of `CATEGORIES` and `SCENES`.
        num_normal (`int`, defaults to 8): normal pictures per category in the test split.
        num_anomalous (`int`, defaults to 4): pictures per category and kind of defect in the test split.
        size (`int`, defaults to 128): side in pixels.
        seed (`int`, defaults to 0): which data set.
        num_train (`int`, defaults to 0): normal pictures per category in the train split.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        OSError: the folder is not empty.
        ValueError: an unknown category.
    """
    unknown = [category for category in categories if category not in ALL]
    if unknown:
        raise ValueError(f"categories has {', '.join(unknown)}; expected some of {', '.join(ALL)}.")
    kinds = [("train", None, num_train), ("test", None, num_normal), *(("test", d, num_anomalous) for d in DEFECTS)]
    with new_folder(root) as staged:
        for category in categories:
            for kind, (split, defect, count) in enumerate(kinds):
                for index in range(count):
                    number = ((seed * len(CATEGORIES) + ALL.index(category)) * 10 + kind) * 10_000 + index
                    picture, mask = generate_image(category, defect, size, number)
                    _save(picture, staged / category / split / (defect or "good") / f"{index:03d}.png")
                    if defect is not None:
                        _save(mask, staged / category / "ground_truth" / defect / f"{index:03d}_mask.png")
    return Path(root)


def _save(picture: Image.Image, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


__all__ = ["CATEGORIES", "DEFECTS", "SCENES", "generate_image", "write_dataset"]
