"""Cut KolektorSDD images into thirds, as evaluated in the paper."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import DEFAULT_MASK_OPTIONS
from ..utils.files import new_folder
from .index import DataIndex
from .layouts.base import Row
from .loading import index_benchmark


def write_kolektor_thirds(
    root: str | os.PathLike, output: str | os.PathLike, *, seed: int = 0, progress: bool = False
) -> Path:
    """
    Cut the images of the official KolektorSDD into three parts of equal height, as evaluated in the paper.

    A part is anomalous if its mask is not empty. The test split contains all anomalous parts and a random quarter of
    the normal parts (54 and 286 parts of the official images). The paper does not say which normal parts it uses; here
    they depend on the seed. Load the result with `load_benchmark("ksdd", output)`.

    Args:
        root (`str` or `os.PathLike`): official folder with kos01, kos02, ... and the fine masks.
        output (`str` or `os.PathLike`): folder to write. Must be empty or not exist.
        seed (`int`, defaults to 0): seed for the choice of normal parts.
        progress (`bool`, defaults to `False`): whether to show a progress bar.

    Returns:
        `pathlib.Path`: the output folder.

    Raises:
        OSError: if the output is not empty or an image cannot be read.
        ValueError: if `root` is not the official KolektorSDD, or if a mask and its image differ in size.
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
                anomalous = mask[rows]
                target = folders["test/defect" if anomalous.any() else "train/good"] / f"{name}.png"
                Image.fromarray(pixels[rows]).save(target)
                if anomalous.any():
                    saved = Image.fromarray(anomalous.astype(np.uint8) * 255)
                    saved.save(folders["ground_truth/defect"] / f"{name}_mask.png")
                else:
                    normal.append(target.name)
        drawn = np.random.default_rng(seed).permutation(len(normal))[: round(len(normal) / 4)]
        for number in drawn:
            os.replace(folders["train/good"] / normal[number], folders["test/good"] / normal[number])
    return Path(output)


def _read(index: DataIndex, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (height, width, 3) and boolean mask (height, width) of an image."""
    listing = index.reading.listing
    image = listing.absolute(row.image)
    pixels = np.asarray(load_image(image))
    if row.mask is None:
        return pixels, np.zeros(pixels.shape[:2], dtype=bool)
    return pixels, marked_pixels(listing.absolute(row.mask), DEFAULT_MASK_OPTIONS, image)


__all__ = ["write_kolektor_thirds"]
