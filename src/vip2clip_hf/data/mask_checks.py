"""Find masks that were probably read the wrong way: inverted, marked as a whole, or empty."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from transformers.utils import logging

from ..models.vip2clip.mask_loading_vip2clip import read_mask
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .targets import undecoded


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)
INVERTED_MASK = "masks that mark more than half of the image, as most masks do; if they are inverted, set mask_invert"
WHOLE_MASK = "masks of anomalous images that mark the whole image"
EMPTY_MASK = "anomalous images with an empty mask at this mask threshold, still counted as anomalous"
# Masks read by `warn_about_masks`.
SAMPLE_SIZE = 32


def suspicious_masks(names: Sequence[str], shares: Sequence[float]) -> dict[str, list[str]]:
    """
    Find suspicious masks of anomalous images.

    Args:
        names (`Sequence[str]`): name of every anomalous image with a mask.
        shares (`Sequence[float]`): share of anomalous pixels of each mask, in [0, 1].

    Returns:
        `dict[str, list[str]]`: names by kind: empty masks, masks of the whole image, and masks that mark more than
        half of the image if most masks with marked pixels do.
    """
    found = np.asarray(shares, dtype=float)
    kinds = {EMPTY_MASK: found == 0, WHOLE_MASK: found == 1}
    large, marked = found > 0.5, found > 0
    if large.sum() > marked.sum() / 2:
        kinds[INVERTED_MASK] = large & (found < 1)
    return {kind: [name for name, there in zip(names, where) if there] for kind, where in kinds.items() if where.any()}


def warn_about_masks(dataset: "Dataset", options: MaskOptions, what: str = "dataset") -> dict[str, list[str]]:
    """
    Read a sample of the masks of anomalous images and warn about suspicious masks, before a long run.

    Args:
        dataset (`datasets.Dataset`): dataset returned by [`load_folder`] or [`load_benchmark`].
        options ([`MaskOptions`]): how to read masks. Columns of the dataset with options have precedence.
        what (`str`, defaults to `"dataset"`): name of the dataset in the warning.

    Returns:
        `dict[str, list[str]]`: names of images by kind of suspicion. Masks that cannot be read are left out, because
        reading them for use raises an error.
    """
    rows = undecoded(dataset)
    columns = dataset.select_columns(["mask", "label"]).with_format("arrow")[:]
    with_mask = [
        number
        for number, (mask, label) in enumerate(zip(columns["mask"], columns["label"]))
        if mask.is_valid and label.as_py() == 1
    ]
    count = min(len(with_mask), SAMPLE_SIZE)
    sample = [with_mask[(2 * number + 1) * len(with_mask) // (2 * count)] for number in range(count)]
    names, shares = [], []
    for row in (rows[number] for number in sample):
        try:
            read = read_mask(row["mask"], MaskOptions.named(row).over(options))
        except (OSError, ValueError):
            continue
        names.append(str(row.get("image_id")))
        shares.append(float(read.marked.mean()))
    found = suspicious_masks(names, shares)
    for kind, images in found.items():
        logger.warning_once(
            f"The {what} contains {kind}: {len(images)} of {len(names)} masks read, such as that of {images[0]!r}. "
            "Check the masks with vip2clip data --check."
        )
    return found


__all__ = ["EMPTY_MASK", "INVERTED_MASK", "WHOLE_MASK", "suspicious_masks", "warn_about_masks"]
