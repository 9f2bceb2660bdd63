"""Training data of the Trainer: augmented rows, and their order in each epoch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.collator import undecoded
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .augmentation import Augmentation


if TYPE_CHECKING:
    from datasets import Dataset


# Index of a padding row.
PADDING = -1


class TrainingRows(torch.utils.data.Dataset[dict[str, Any]]):
    """
    Rows of a dataset in all views.

    The index of a row is `view * number of images + position`. The index `PADDING` returns a row with `is_padding`
    set, which [`ViP2ClipCollator`] drops. The length is the number of images.

    Args:
        dataset (`datasets.Dataset`): dataset returned by [`load_folder`] or [`load_benchmark`].
        augmentation ([`Augmentation`], *optional*): creates the views.
        mask_options ([`MaskOptions`], *optional*): how the augmentation reads masks, unless the row says otherwise.
    """

    def __init__(
        self,
        dataset: "Dataset",
        augmentation: Augmentation | None = None,
        mask_options: MaskOptions | None = None,
    ) -> None:
        # The image processor decodes the images, because its errors name unreadable files.
        self.dataset, self.augmentation = undecoded(dataset), augmentation
        self.mask_options = mask_options or MaskOptions()
        self.image_ids = list(dataset["image_id"])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == PADDING:
            return {**self.read(0, 0), "is_padding": True}
        return {**self.read(*divmod(index, len(self))), "is_padding": False}

    def read(self, view: int, position: int) -> dict[str, Any]:
        """
        Read a row in one view.

        Args:
            view (`int`): number of the view; 0 is the original image.
            position (`int`): position of the image in the dataset.

        Returns:
            `dict`: the row.
        """
        row = self.dataset[position]
        if self.augmentation is None:
            return row
        options = MaskOptions.named(row).over(self.mask_options)
        return self.augmentation({**row, **options.columns()}, view, position)


class EpochSampler(torch.utils.data.Sampler[int]):
    """
    Sample each image once per epoch, in a random order that depends only on the seed and the epoch.

    The number of indices is padded with `PADDING` to a multiple of the images per step. Without padding, several
    processes would repeat images at the end of an epoch.

    Args:
        num_images (`int`): number of images in the dataset.
        multiple (`int`, defaults to 1): number of images per step over all processes; 1 for a single process.
        seed (`int`, defaults to 0): random seed of the order.
        num_views (`int`, *optional*, defaults to 1): number of views. The epochs cycle through them; with `None`,
            every epoch uses a new view.
    """

    def __init__(self, num_images: int, multiple: int = 1, seed: int = 0, num_views: int | None = 1) -> None:
        self.num_images, self.multiple, self.seed, self.num_views = num_images, multiple, seed, num_views
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_images // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_images)
        view = self.epoch if self.num_views is None else self.epoch % self.num_views
        yield from (view * self.num_images + order).tolist()
        yield from [PADDING] * (len(self) - self.num_images)


__all__ = ["PADDING", "EpochSampler", "TrainingRows"]
