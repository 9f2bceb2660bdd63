"""Augmented views of training images, reproducible from the seed, the view and the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import DEFAULT_MASK_OPTIONS, MaskOptions


AUGMENTATIONS = ("flip", "rotate", "color", "cut_paste")
# Maximum relative change of brightness, contrast and saturation.
COLOR_CHANGE = 0.2
# Range of the width and the height of a pasted piece, relative to the shorter side of the image.
PIECE_SIDES = (0.05, 0.3)


class Augmentation:
    """
    Augment the rows of a dataset.

    View 0 is the original image. Every other view is a new random change of the image.

    Args:
        kinds (`Sequence[str]`):
            One or more of:

            - `"flip"`: flip horizontally and vertically, each with a probability of 0.5.
            - `"rotate"`: rotate by a multiple of 90 degrees.
            - `"color"`: change brightness, contrast and saturation by up to 20 %.
            - `"cut_paste"`: with a probability of 0.5, paste a rotated and recoloured piece of a normal image at
              another position and mark it as a defect. This allows training on normal images only.
        seed (`int`, defaults to 0):
            Random seed.
        reading (`Mapping[str, Any]`, *optional*):
            How to read images: `bit_depth` and `page` of [`load_image`]. The trainer passes those of the image
            processor.

    Raises:
        ValueError: if `kinds` is empty or contains an unknown kind.
    """

    def __init__(self, kinds: Sequence[str], seed: int = 0, reading: Mapping[str, Any] | None = None) -> None:
        unknown = [kind for kind in kinds if kind not in AUGMENTATIONS]
        if unknown or not kinds:
            raise ValueError(f"augmentation is {list(kinds)}; expected some of {', '.join(AUGMENTATIONS)}.")
        self.kinds, self.seed = tuple(kind for kind in AUGMENTATIONS if kind in kinds), seed
        self.reading = dict(reading or {})

    def __call__(self, row: dict[str, Any], view: int, position: int) -> dict[str, Any]:
        """
        Augment a row.

        Args:
            row (`dict`): row with `image`, `mask`, `label` and optionally the options for masks, such as
                `mask_threshold`, see [`MaskOptions`]. [`TrainingRows`] adds those of the trainer. Other fields are
                kept.
            view (`int`): number of the view, for example the epoch.
            position (`int`): position of the image in the dataset.

        Returns:
            `dict`: the row, with `image` a PIL image and `mask` a PIL image (L, 255 for anomalous pixels) or None.
            `label` is 1 if a defect was pasted. View 0 is the unchanged row.

        Raises:
            OSError: if the image or the mask cannot be read.
            ValueError: if the mask is not valid or differs in size from the image, see [`load_mask`].
        """
        if view == 0:
            return row
        rng = np.random.default_rng([self.seed, view, position])
        image, mask, label = load_image(row["image"], **self.reading), None, row["label"]
        if row.get("mask") is not None:
            marked = marked_pixels(row["mask"], MaskOptions.named(row), row["image"])
            mask = Image.fromarray(marked.astype(np.uint8) * 255)
        # Draw all values, even if they are not used: adding a kind must not change the others.
        flips, turns, paste, colors = rng.random(2) < 0.5, rng.integers(4), rng.random() < 0.5, rng.uniform(-1, 1, 3)
        if "cut_paste" in self.kinds and label == 0 and paste:
            image, mask = cut_paste(image, rng)
            label = 1
        operations = []
        if "flip" in self.kinds:
            choices = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
            operations += [operation for operation, flip in zip(choices, flips) if flip]
        if "rotate" in self.kinds and turns:
            quarters = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
            operations.append(quarters[turns - 1])
        for operation in operations:
            image = image.transpose(operation)
            mask = None if mask is None else mask.transpose(operation)
        if "color" in self.kinds:
            for enhance, change in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colors):
                image = enhance(image).enhance(1 + COLOR_CHANGE * change)
        # The mask is read now. Keeping small regions is a matter of resizing.
        read = {**DEFAULT_MASK_OPTIONS.columns(), "keep_small_regions": row.get("keep_small_regions")}
        return {**row, "image": image, "mask": mask, "label": label, **read}


def cut_paste(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """
    Paste a rotated and recoloured piece of an image, with an irregular outline, at another position of the image.

    Args:
        image (`PIL.Image.Image`): RGB image.
        rng (`np.random.Generator`): random generator.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: the changed image (RGB) and the mask of the piece (L, 0 or 255).
    """
    short = min(image.size)
    width, height = (max(2, round(side * short)) for side in rng.uniform(*PIECE_SIDES, size=2))
    width, height = min(width, image.width), min(height, image.height)

    def position() -> tuple[int, int]:
        return int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))

    left, top = position()
    piece = image.crop((left, top, left + width, top + height))
    piece = piece.rotate(float(rng.uniform(30, 330)), resample=Image.Resampling.BICUBIC, fillcolor=_mean_color(piece))
    piece = ImageEnhance.Brightness(piece).enhance(float(rng.choice([rng.uniform(0.4, 0.8), rng.uniform(1.2, 1.6)])))
    # Ellipse with a varying radius, because real defects are not rectangles.
    y, x = ((np.arange(side) + 0.5) / side * 2 - 1 for side in (height, width))
    distance, angle = np.hypot(y[:, None], x), np.arctan2(y[:, None], x)  # (height, width)
    phases = rng.uniform(0, 2 * np.pi, size=3)
    radius = 0.8 + sum(0.12 / n * np.sin(n * angle + phase) for n, phase in enumerate(phases, start=1))
    inside = distance <= np.maximum(radius, distance.min())  # at least one pixel
    outline = Image.fromarray((inside * 255).astype(np.uint8))
    target = position()
    image, mask = image.copy(), Image.new("L", image.size)
    image.paste(piece, target, outline)
    mask.paste(outline, target)
    return image, mask


def _mean_color(image: Image.Image) -> tuple[int, ...]:
    return tuple(round(value) for value in np.asarray(image.convert("RGB")).mean(axis=(0, 1)))


__all__ = ["AUGMENTATIONS", "Augmentation", "cut_paste"]
