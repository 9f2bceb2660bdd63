"""Changed views of training images, the same for the same seed, view and image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from ..models.vip2clip.image_loading_vip2clip import load_image, load_mask


AUGMENTATIONS = ("flip", "rotate", "color", "cut_paste")
# Largest relative change of brightness, contrast and saturation.
COLOR_CHANGE = 0.2
# Sides of a pasted piece, of the shorter side of the image.
PIECE_SIDES = (0.05, 0.3)


class Augmentation:
    """
    Changes rows of a data set. View 0 is the image as it is; every other view draws anew for each image.

    Args:
        kinds (`Sequence[str]`):
            Of `"flip"` (left to right and upside down, each every other time), `"rotate"` (by a multiple of 90
            degrees), `"color"` (brightness, contrast and saturation by up to 20 %) and `"cut_paste"` (in every other
            view of a normal image a piece of it, turned and recoloured, is pasted elsewhere and marked as a defect;
            so that normal images alone can be trained on).
        seed (`int`, defaults to 0):
            Of the draws.

    Raises:
        ValueError: an unknown kind, or none.
    """

    def __init__(self, kinds: Sequence[str], seed: int = 0):
        unknown = [kind for kind in kinds if kind not in AUGMENTATIONS]
        if unknown or not kinds:
            raise ValueError(f"augmentation is {list(kinds)}; expected some of {', '.join(AUGMENTATIONS)}.")
        self.kinds, self.seed = tuple(kind for kind in AUGMENTATIONS if kind in kinds), seed

    def __call__(self, row: dict[str, Any], view: int, position: int) -> dict[str, Any]:
        """
        Args:
            row (`dict`): `image`, `mask`, `label`, `mask_threshold` (optional) and whatever else, which stays.
            view (`int`): which view, for instance the number of the epoch.
            position (`int`): the image's place in the data set.

        Returns:
            `dict`: the row with `image` a PIL image, `mask` a PIL image (L, 255 for anomalous pixels) or None, and
            `label` 1 where a defect was pasted. View 0 is the row itself.
        """
        if view == 0:
            return row
        rng = np.random.default_rng([self.seed, view, position])
        image, mask, label = load_image(row["image"]), None, row["label"]
        if row.get("mask") is not None:
            marked = load_mask(row["mask"]) > (row.get("mask_threshold") or 0)
            mask = Image.fromarray(marked.astype(np.uint8) * 255)
        # Draws are made whatever is done with them, so that one kind does not change the others.
        flips, turns, paste, colors = rng.random(2) < 0.5, rng.integers(4), rng.random() < 0.5, rng.uniform(-1, 1, 3)
        if "cut_paste" in self.kinds and label == 0 and paste:
            image, mask = cut_paste(image, rng)
            label = 1
        operations = []
        if "flip" in self.kinds:
            choices = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
            operations += [operation for operation, wanted in zip(choices, flips) if wanted]
        if "rotate" in self.kinds and turns:
            quarters = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
            operations.append(quarters[turns - 1])
        for operation in operations:
            image = image.transpose(operation)
            mask = None if mask is None else mask.transpose(operation)
        if "color" in self.kinds:
            for enhance, change in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colors):
                image = enhance(image).enhance(1 + COLOR_CHANGE * change)
        return {**row, "image": image, "mask": mask, "label": label, "mask_threshold": 0}


def cut_paste(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """
    An image with one piece of it, turned, recoloured and with an outline of its own, pasted elsewhere.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: the image (RGB) and where the piece is (L, 255 there).
    """
    short = min(image.size)
    width, height = (max(2, round(side * short)) for side in rng.uniform(*PIECE_SIDES, size=2))
    width, height = min(width, image.width), min(height, image.height)

    def place() -> tuple[int, int]:
        return int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))

    left, top = place()
    piece = image.crop((left, top, left + width, top + height))
    piece = piece.rotate(float(rng.uniform(30, 330)), resample=Image.Resampling.BICUBIC, fillcolor=_mean_color(piece))
    piece = ImageEnhance.Brightness(piece).enhance(float(rng.choice([rng.uniform(0.4, 0.8), rng.uniform(1.2, 1.6)])))
    # An ellipse whose radius wavers: real defects are no rectangles.
    y, x = ((np.arange(side) + 0.5) / side * 2 - 1 for side in (height, width))
    distance, angle = np.hypot(y[:, None], x), np.arctan2(y[:, None], x)  # (height, width)
    phases = rng.uniform(0, 2 * np.pi, size=3)
    radius = 0.8 + sum(0.12 / n * np.sin(n * angle + phase) for n, phase in enumerate(phases, start=1))
    inside = distance <= np.maximum(radius, distance.min())  # never empty, however small the piece
    outline = Image.fromarray((inside * 255).astype(np.uint8))
    target = place()
    image, mask = image.copy(), Image.new("L", image.size)
    image.paste(piece, target, outline)
    mask.paste(outline, target)
    return image, mask


def _mean_color(image: Image.Image) -> tuple[int, ...]:
    return tuple(round(value) for value in np.asarray(image.convert("RGB")).mean(axis=(0, 1)))


__all__ = ["AUGMENTATIONS", "Augmentation", "cut_paste"]
