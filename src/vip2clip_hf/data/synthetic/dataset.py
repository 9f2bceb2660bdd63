"""Synthetic images and datasets with exact masks, for demos and tests."""

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
    Generate an image and its mask. The same arguments give the same image.

    Args:
        category (`str`): one of `CATEGORIES` (stripes, grains, weave, waves, brushed, dots) or `SCENES` (materials,
            objects, prints).
        defect (`str`, *optional*): one of `DEFECTS` (scratch, blob, cut_paste, missing). Defaults to a normal image.
        size (`int`, defaults to 128): width and height in pixels.
        seed (`int`, defaults to 0): seed of the image.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: image (mode RGB) and mask (mode L, 255 in the defect, 0 elsewhere).

    Raises:
        ImportError: if `category` is in `SCENES` and `scipy` is not installed.
        ValueError: if the category or defect is unknown.
    """
    rng = np.random.default_rng([seed, size])
    surface, plain, parts = texture(rng, category, size)
    mask = np.zeros((size, size), dtype=bool)
    if defect is not None:
        surface, mask = add_defect(rng, defect, surface, plain, parts)
    image = Image.fromarray(np.rint(surface * 255).astype(np.uint8))
    return image, Image.fromarray(mask.astype(np.uint8) * 255)


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
    Write a dataset of synthetic images in the layout of MVTec AD. The same arguments give the same images.

    The folder only appears when it is complete.

    Args:
        root (`str` or `os.PathLike`): folder to write. Must be empty or not exist.
        categories (`tuple[str, ...]`): categories from `CATEGORIES` and `SCENES`. Defaults to `CATEGORIES`.
        num_normal (`int`, defaults to 8): number of normal images per category in the test split.
        num_anomalous (`int`, defaults to 4): number of images per category and defect type in the test split.
        size (`int`, defaults to 128): width and height of the images in pixels.
        seed (`int`, defaults to 0): seed of the dataset.
        num_train (`int`, defaults to 0): number of normal images per category in the train split.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        ImportError: if a category is in `SCENES` and `scipy` is not installed.
        OSError: if the folder is not empty.
        ValueError: if a category is unknown.
    """
    unknown = [category for category in categories if category not in ALL]
    if unknown:
        raise ValueError(f"categories contains {', '.join(unknown)}; expected some of {', '.join(ALL)}.")
    groups = [("train", None, num_train), ("test", None, num_normal), *(("test", d, num_anomalous) for d in DEFECTS)]
    with new_folder(root) as staged:
        for category in categories:
            for group, (split, defect, count) in enumerate(groups):
                for index in range(count):
                    image_seed = ((seed * len(CATEGORIES) + ALL.index(category)) * 10 + group) * 10_000 + index
                    image, mask = generate_image(category, defect, size, image_seed)
                    _save(image, staged / category / split / (defect or "good") / f"{index:03d}.png")
                    if defect is not None:
                        _save(mask, staged / category / "ground_truth" / defect / f"{index:03d}_mask.png")
    return Path(root)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


__all__ = ["generate_image", "write_dataset"]
