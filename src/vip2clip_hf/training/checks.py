"""Checks of training data before the first step."""

from typing import TYPE_CHECKING

from transformers.utils import logging

from ..data.collator import count_masks
from .augmentation import Augmentation


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)


def check_training_data(dataset: "Dataset", augmentation: Augmentation | None = None) -> bool:
    """
    Whether there are masks to train on.

    Raises:
        ValueError: images without labels, or no anomalous ones. Says what can be trained and how.
    """
    if not len(dataset):
        raise ValueError("The training data have no images; expected normal and anomalous ones.")
    labels = dataset["label"]
    unlabelled = sum(label is None for label in labels)
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(labels)} training images have no label; expected normal and anomalous ones, for "
            "instance in the folders normal/ and anomalous/ (docs/data.md)."
        )
    pasted = augmentation is not None and "cut_paste" in augmentation.kinds
    if not any(labels):
        if not pasted:
            raise ValueError(
                f"All {len(labels)} training images are normal; without defects nothing can be learned. Add anomalous "
                "images, or let defects be made up: --augmentation cut_paste (docs/training.md)."
            )
        return True
    if all(labels):
        logger.warning("All training images are anomalous: the image score has nothing to be told apart from.")
    masks = count_masks(dataset)
    if not masks and not pasted:
        logger.warning(
            "No anomalous image has a mask: only the image loss is trained, and maps will be poor. Add masks "
            "(docs/data.md), or --augmentation cut_paste, which makes up defects with masks."
        )
    return masks > 0 or pasted


__all__ = ["check_training_data"]
