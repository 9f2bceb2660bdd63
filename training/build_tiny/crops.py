"""Crops of synthetic and real images, for distillation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.data.synthetic.dataset import ALL, generate_image
from vip2clip_hf.data.synthetic.defects import DEFECTS
from vip2clip_hf.models.vip2clip.image_listing_vip2clip import has_image_extension
from vip2clip_hf.models.vip2clip.image_loading_vip2clip import load_image

from .common import CROP


def synthetic_crop(number: int, seed: int) -> Image.Image:
    """Crop a synthetic image of a random category, with a defect in half of the cases."""
    rng = np.random.default_rng([seed, number])
    category = ALL[rng.integers(len(ALL))] if rng.random() < 0.3 else ALL[-3:][rng.integers(3)]
    defect = DEFECTS[rng.integers(len(DEFECTS))] if rng.random() < 0.5 else None
    picture, _ = generate_image(category, defect, 256, seed=int(rng.integers(1 << 31)))
    return _crop(picture, rng, 0.6)


def _crop(picture: Image.Image, rng: np.random.Generator, smallest: float) -> Image.Image:
    """Crop a random square with at least this share of the shorter side, resize it, and flip half of the crops."""
    side = min(picture.size) * rng.uniform(smallest, 1)
    left, top = (rng.uniform(0, length - side) for length in picture.size)
    crop = picture.resize((CROP, CROP), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def make_crops(count: int, seed: int, folders: list[Path], share: float = 0.5) -> np.ndarray:
    """
    Create training crops.

    Args:
        count (`int`): number of crops.
        seed (`int`): random seed.
        folders (`list[Path]`): folders of real images. If empty, all crops are synthetic.
        share (`float`, defaults to 0.5): share of crops of real images.

    Returns:
        `np.ndarray` of shape `(count, CROP, CROP, 3)`: uint8, RGB.
    """
    photos = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if has_image_extension(path.name) and "ground_truth" not in path.parts
    ]
    rng, crops = np.random.default_rng([seed, 1]), np.empty((count, CROP, CROP, 3), dtype=np.uint8)
    for number in tqdm(range(count), desc="Creating crops"):
        if photos and rng.random() < share:
            crop = _crop(load_image(photos[rng.integers(len(photos))]), rng, 0.3)
        else:
            crop = synthetic_crop(number, seed)
        crops[number] = np.asarray(crop.convert("RGB"))
    return crops


def pixel_values(crops: np.ndarray, processor: ViP2ClipImageProcessor) -> torch.Tensor:
    """Normalize crops to pixel values of shape `(count, 3, CROP, CROP)`."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - mean) / std
