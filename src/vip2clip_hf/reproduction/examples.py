"""Choose and read the example images of Figures 3, 4 and 7."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.collator import undecoded
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import MaskOptions


if TYPE_CHECKING:
    from datasets import Dataset

# Categories of the examples in the paper: an object and a texture of MVTec AD.
PAPER_CATEGORIES = ("hazelnut", "leather")


@dataclass(frozen=True)
class Example:
    """
    An image of a figure.

    Args:
        image (`PIL.Image.Image`): the upright image, in mode RGB.
        mask (`np.ndarray` of shape `(height, width)`, *optional*): bool, its anomalous pixels, or `None` without mask.
        caption (`str`): text below the image.
        category (`str`): its category, for methods whose prompts contain it.
    """

    image: Image.Image
    mask: np.ndarray | None
    caption: str
    category: str = ""


def figure_examples(
    dataset: "Dataset",
    count: int,
    *,
    categories: Sequence[str] = PAPER_CATEGORIES,
    mask_options: MaskOptions | None = None,
) -> list[int]:
    """
    Choose typical anomalous images of a dataset. The same dataset gives the same images.

    The categories take turns. Those of `categories` that the dataset has come first; the others follow only if these
    have too few images. Within a category, the kinds of defects take turns. Of each kind, the image whose share of
    anomalous pixels is closest to the median of its category comes first. Images without a mask come last: they are
    used only if no more images with a mask are left.

    Args:
        dataset (`datasets.Dataset`): dataset returned by [`load_folder`] or [`load_benchmark`].
        count (`int`): number of images.
        categories (`Sequence[str]`, defaults to hazelnut and leather): preferred categories.
        mask_options ([`MaskOptions`], *optional*): how to read masks.

    Returns:
        `list[int]`: positions of at most `count` rows. The masks of at most `count` categories are read, unless these
        have too few images.

    Raises:
        OSError: if a mask cannot be read.
        ValueError: if `count` is less than 1, the dataset has no anomalous images, or a mask is not valid.
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1.")
    labels, names = dataset["label"], dataset["category"]
    members: dict[str, list[int]] = {}
    for position, (label, name) in enumerate(zip(labels, names)):
        if label == 1:
            members.setdefault(name, []).append(position)
    if not members:
        raise ValueError("The dataset has no image with label 1 (anomalous); expected at least one.")
    preferred = [name for name in categories if name in members]
    rows = undecoded(dataset)

    def ordered(names: Sequence[str]) -> Iterator[int]:
        return _in_turns([_from_typical(rows, members[name], mask_options) for name in names])

    found = list(islice(ordered(preferred), count))
    others = [name for name in members if name not in preferred]
    return found + list(islice(ordered(others), count - len(found)))


def read_examples(
    dataset: "Dataset",
    count: int = 1,
    *,
    title: str = "",
    categories: Sequence[str] = PAPER_CATEGORIES,
    mask_options: MaskOptions | None = None,
    reading: Mapping[str, Any] | None = None,
) -> list[Example]:
    """
    Read the images that [`figure_examples`] chooses.

    Args:
        dataset (`datasets.Dataset`): dataset returned by [`load_folder`] or [`load_benchmark`].
        count (`int`, defaults to 1): number of images.
        title (`str`, defaults to `""`): title of the dataset, for the captions.
        categories, mask_options: see [`figure_examples`].
        reading (`Mapping[str, Any]`, *optional*): how to read images, see [`reading_options`].

    Returns:
        `list[Example]`: at most `count` images. The caption names dataset, category and kind of defect.

    Raises:
        OSError: if an image or mask cannot be read.
        ValueError: if `count` is less than 1, the dataset has no anomalous images, or a mask is not valid.
    """
    rows, examples = undecoded(dataset), []
    for position in figure_examples(dataset, count, categories=categories, mask_options=mask_options):
        row = rows[position]
        image = load_image(row["image"], **(reading or {}))
        mask = None if row["mask"] is None else _mask(row, mask_options)
        parts = [part for part in (title, row["category"], row["defect"]) if part]
        # Datasets with one category have its name.
        names = {part.casefold().replace("_", " "): part for part in reversed(parts)}
        examples.append(Example(image, mask, ", ".join(reversed(names.values())), row["category"] or ""))
    return examples


def _mask(row: dict[str, Any], mask_options: MaskOptions | None) -> np.ndarray:
    return marked_pixels(row["mask"], MaskOptions.named(row).over(mask_options or MaskOptions()), row["image"])


def _from_typical(rows: "Dataset", members: list[int], mask_options: MaskOptions | None) -> Iterator[int]:
    """Yield the positions of a category, see [`figure_examples`]. Masks are read when the first is needed."""
    areas, defects = {}, {}
    for position in members:
        row = rows[position]
        defects[position] = row["defect"] or ""
        areas[position] = 0.0 if row["mask"] is None else float(_mask(row, mask_options).mean())
    with_mask = [position for position in members if areas[position] > 0]
    median = float(np.median([areas[position] for position in with_mask])) if with_mask else 0.0
    # Rounding keeps ties that the difference of two floats would break.
    with_mask.sort(key=lambda position: (round(abs(areas[position] - median), 9), position))
    kinds: dict[str, list[int]] = {}
    for position in with_mask:
        kinds.setdefault(defects[position], []).append(position)
    yield from _in_turns([iter(kind) for kind in kinds.values()])
    yield from (position for position in members if areas[position] == 0)


def _in_turns(groups: Sequence[Iterator[int]]) -> Iterator[int]:
    """Yield the first of each group, then the second, and so on."""
    remaining = list(groups)
    while remaining:
        for group in list(remaining):
            try:
                yield next(group)
            except StopIteration:
                remaining.remove(group)


__all__ = ["PAPER_CATEGORIES", "Example", "figure_examples", "read_examples"]
