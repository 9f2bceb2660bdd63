"""KolektorSDD in thirds, as the paper's code evaluates it."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..models.vip2clip.image_loading_vip2clip import load_image, load_mask
from ..utils.files import new_folder
from .index import DataIndex
from .layouts.base import Row
from .loading import index_benchmark


def write_kolektor_thirds(
    root: str | os.PathLike, output: str | os.PathLike, *, seed: int = 0, progress: bool = False
) -> Path:
    """
    Cut the images of the official KolektorSDD into three parts of equal height, the form the paper evaluates, and
    write them as a tree that `load_benchmark("ksdd", output)` reads. A part is anomalous when its mask is not empty.
    All anomalous parts and a quarter of the normal ones are the test split (54 and 286 of the official images); which
    normal ones the paper drew is not known, here the seed decides.

    Args:
        root (`str` or `os.PathLike`): the official folder (kos01, ..., with its fine masks).
        output (`str` or `os.PathLike`): folder to write; must be empty or not exist.
        seed (`int`, defaults to 0): which normal parts are drawn.
        progress (`bool`, defaults to `False`): whether to show a progress bar.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        OSError: the output is not empty, or an image cannot be read.
        ValueError: the root is not the official KolektorSDD.
    """
    index = index_benchmark("ksdd", root, layout="kolektor")
    normal = []
    with new_folder(output) as staged:
        category = staged / "electrical commutators"
        folders = {name: category / name for name in ("train/good", "test/good", "test/defect", "ground_truth/defect")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        for row in tqdm(index.rows, disable=not progress, unit="image"):
            pixels, mask = _read(index, row)
            height = len(pixels)
            for part in range(3):
                rows = slice(part * height // 3, (part + 1) * height // 3)
                name = f"{row.image.replace('/', '_').rsplit('.', 1)[0]}_{part}"
                marked = mask[rows]
                target = folders["test/defect" if marked.any() else "train/good"] / f"{name}.png"
                Image.fromarray(pixels[rows]).save(target)
                if marked.any():
                    saved = Image.fromarray(marked.astype(np.uint8) * 255)
                    saved.save(folders["ground_truth/defect"] / f"{name}_mask.png")
                else:
                    normal.append(target.name)
        drawn = np.random.default_rng(seed).permutation(len(normal))[: round(len(normal) / 4)]
        for number in drawn:
            os.replace(folders["train/good"] / normal[number], folders["test/good"] / normal[number])
    return Path(output)


def _read(index: DataIndex, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (height, width, 3) and mask (height, width) of an image."""
    listing = index.reading.listing
    pixels = np.asarray(load_image(listing.absolute(row.image)))
    if row.mask is None:
        return pixels, np.zeros(pixels.shape[:2], dtype=bool)
    mask = load_mask(listing.absolute(row.mask)) > 0
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"{row.mask} has another size than {row.image}; expected the same.")
    return pixels, mask


__all__ = ["write_kolektor_thirds"]
