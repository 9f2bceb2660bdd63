"""What the Trainer reads: images by view, in an order given by seed and epoch alone, without repeats."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.collator import undecoded
from .augmentation import Augmentation


if TYPE_CHECKING:
    from datasets import Dataset


PADDING = -1


class TrainingRows(torch.utils.data.Dataset):
    """
    Rows by `view * number of images + position`; [`PADDING`] is a row that must not count.

    Args:
        dataset (`datasets.Dataset`): from `load_folder` or `load_benchmark`.
        augmentation ([`Augmentation`], *optional*): makes the views.
    """

    def __init__(self, dataset: "Dataset", augmentation: Augmentation | None = None):
        # Images are decoded by the image processor, which names the file if one cannot be read.
        self.dataset, self.augmentation = undecoded(dataset), augmentation
        self.image_ids = list(dataset["image_id"])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == PADDING:
            return {**self.read(0, 0), "is_padding": True}
        return {**self.read(*divmod(index, len(self))), "is_padding": False}

    def read(self, view: int, position: int) -> dict[str, Any]:
        """One view of the image at a position."""
        row = self.dataset[position]
        return row if self.augmentation is None else self.augmentation(row, view, position)


class EpochSampler(torch.utils.data.Sampler):
    """
    Every image once an epoch, in an order drawn from seed and epoch. The number of indices is filled up to a multiple
    with [`PADDING`]: where several processes share an epoch, they would otherwise repeat images at its end.

    Args:
        num_images (`int`): images of the data set.
        multiple (`int`, defaults to 1): images of a step over all processes; 1 for one process.
        seed (`int`, defaults to 0): of the order.
        num_views (`int`, *optional*): views that the epochs go through in turn; one for every epoch, when not given.
    """

    def __init__(self, num_images: int, multiple: int = 1, seed: int = 0, num_views: int | None = 1):
        self.num_images, self.multiple, self.seed, self.num_views = num_images, multiple, seed, num_views
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_images // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_images)
        view = self.epoch if self.num_views is None else self.epoch % self.num_views
        yield from (view * self.num_images + order).tolist()
        yield from [PADDING] * (len(self) - self.num_images)


__all__ = ["PADDING", "EpochSampler", "TrainingRows"]
