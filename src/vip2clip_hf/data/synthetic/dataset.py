"""Synthetic images and datasets with exact masks, to try things out and to test."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ...utils.files import new_folder
from .defects import DEFECTS, add_defect
from .textures import ALL, CATEGORIES, texture


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
    surface, plain, parts = texture(rng, category, size)
    mask = np.zeros((size, size), dtype=bool)
    if defect is not None:
        surface, mask = add_defect(rng, defect, surface, plain, parts)
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


__all__ = ["generate_image", "write_dataset"]
