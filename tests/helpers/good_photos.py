"""Photos of good parts that look alike, and photos with a defect, for tests of references."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.checkpoints.saving import write_checkpoint


def good_photo(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A grating with noise, of another phase for each seed."""
    rng, (width, height) = np.random.default_rng(seed), size
    y, x = np.mgrid[:height, :width]
    pattern = np.sin(0.6 * (x + rng.uniform(0, 10))) * np.sin(0.4 * y)
    pixels = 120 + 40 * pattern[..., None] * (1, 0.8, 0.6) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def bad_photo(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A good photo of which a third is covered by coloured squares."""
    photo, rng = good_photo(seed, size), np.random.default_rng([seed, 1])
    squares = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    side = size[1] * 2 // 3
    photo.paste(Image.fromarray(squares).resize((side, side), Image.Resampling.NEAREST), (seed % 9, seed % 7))
    return photo


def write_photos(folder: Path, count: int, first: int = 0, photo=good_photo) -> Path:
    """Write numbered photos, such as `03.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        photo(number).save(folder / f"{number:02d}.png")
    return folder


def write_tiny_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of random weights whose features and scores differ between photos."""
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config("release", smoothing_sigma=1.0)).eval()
    change_weights(model)
    with torch.no_grad():
        model.clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
    return write_checkpoint(model, ViP2ClipImageProcessor(size=48), folder)
