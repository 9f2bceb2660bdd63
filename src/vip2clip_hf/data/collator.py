"""Rows of a data set as inputs of the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..models.vip2clip.image_loading_vip2clip import load_mask
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..utils.extras import extra


if TYPE_CHECKING:
    from datasets import Dataset


def count_masks(dataset: "Dataset") -> int:
    """Anomalous images of a data set that have a mask. Opens no image."""
    columns = dataset.select_columns(["mask", "label"]).with_format("arrow")[:]
    return sum(mask.is_valid and label.as_py() == 1 for mask, label in zip(columns["mask"], columns["label"]))


def undecoded(dataset: "Dataset", columns: Iterable[str] = ("image", "mask")) -> "Dataset":
    """A data set that leaves decoding to the image processor, which names the file when one cannot be read."""
    with extra("data", "Reading a dataset"):
        from datasets import Image

    for column in columns:
        dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


@dataclass
class ViP2ClipCollator:
    """
    Rows of a data set as inputs of the model, through its image processor.

    Args:
        image_processor ([`ViP2ClipImageProcessor`]):
            Prepares images and masks.
        pixel_labels (`bool`, defaults to `True`):
            Whether to make mask labels. Leave it off for data where no anomalous image has a mask: the empty masks of
            the normal images alone would teach the model to mark nothing. [`ViP2ClipCollator.for_dataset`] decides.
        mask_threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous; the image processor's (0) when not given. A benchmark's stands
            in `BENCHMARKS[name].mask_threshold`.
        return_metadata (`bool`, defaults to `False`):
            Whether to add `categories`, `defects` and `image_ids`, lists of text that the model does not take.

    Rows may have a `mask_threshold` of their own, which then holds for them. Rows of a [`FeatureCache`] have
    embeddings in place of an image. Rows of [`TrainingRows`] that only fill up a batch are left out: `num_images` is
    the number of the others, and where it is 0 the batch has one row that must not count.

    Returns:
        `dict` with `pixel_values` `(batch_size, 3, height, width)`, `labels` `(batch_size,)` and, with pixel labels,
        `mask_labels` `(batch_size, height, width)` and `mask_label_valid` `(batch_size,)`: False for anomalous images
        without a mask; a normal image without a mask file has an empty mask, which is valid. Images without labels
        give `pixel_values` only.

    Raises:
        OSError: an image or mask that cannot be read.
        ValueError: rows without the columns needed, labels for some images only, a mask of another size than its
            image, or a mask that marks pixels of a normal image. The message names the images.
    """

    image_processor: ViP2ClipImageProcessor
    pixel_labels: bool = True
    mask_threshold: int | float | None = None
    return_metadata: bool = False

    @classmethod
    def for_dataset(cls, image_processor: ViP2ClipImageProcessor, dataset: "Dataset", **options) -> "ViP2ClipCollator":
        """A collator with pixel labels where at least one anomalous image of the data set has a mask."""
        return cls(image_processor, pixel_labels=count_masks(dataset) > 0, **options)

    def __call__(self, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        rows = list(rows)
        if "is_padding" not in rows[0]:
            return self._collate(rows)
        real = [row for row in rows if not row["is_padding"]]
        batch = self._collate(real or rows[:1])
        batch["image_ids"] = [row.get("image_id") for row in real or rows[:1]]
        batch["num_images"] = len(real)
        if not real and "mask_label_valid" in batch:
            batch["mask_label_valid"] = torch.zeros_like(batch["mask_label_valid"])
        return batch

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if "patch_embeds" in rows[0]:
            return self._collate_cached(rows)
        if not all("image" in row and "label" in row for row in rows):
            raise ValueError(
                f"Expected rows with the columns image and label, found {sorted(rows[0])}; a Trainer drops columns "
                "unless remove_unused_columns=False."
            )
        ids = [row.get("image_id") for row in rows]
        labels = [row["label"] for row in rows]
        unlabelled = [image_id for image_id, label in zip(ids, labels) if label is None]
        if 0 < len(unlabelled) < len(rows):
            raise ValueError(f"Expected labels for all images of a batch or for none; {unlabelled} have none.")
        options = {} if self.mask_threshold is None else {"mask_threshold": self.mask_threshold}
        masks = [row.get("mask") for row in rows]
        if self.pixel_labels and not unlabelled:
            thresholds = [row.get("mask_threshold") for row in rows]
            if any(threshold is not None for threshold in thresholds):
                default = self.image_processor.mask_threshold if self.mask_threshold is None else self.mask_threshold
                masks = [
                    None if mask is None else load_mask(mask) > (default if threshold is None else threshold)
                    for mask, threshold in zip(masks, thresholds)
                ]
                options["mask_threshold"] = 0
            options["segmentation_maps"] = masks
        try:
            batch = dict(self.image_processor([row["image"] for row in rows], return_tensors="pt", **options))
        except ValueError as error:
            raise ValueError(f"{error} The images of the batch are {ids}.") from error
        if not unlabelled:
            batch["labels"] = torch.tensor(labels)
        if "mask_labels" in batch:
            contradictory = (batch["labels"] == 0) & batch["mask_labels"].flatten(1).any(dim=1)
            if contradictory.any():
                found = [image_id for image_id, bad in zip(ids, contradictory) if bad]
                raise ValueError(f"The images {found} are labelled normal, but their masks mark anomalous pixels.")
            batch["mask_label_valid"] = torch.tensor(
                [label == 0 or mask is not None for label, mask in zip(labels, masks)]
            )
        if self.return_metadata:
            batch["categories"] = [row.get("category") for row in rows]
            batch["defects"] = [row.get("defect") for row in rows]
            batch["image_ids"] = ids
        return batch

    def _collate_cached(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in ("image_embeds", "patch_embeds")}
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        if self.pixel_labels:
            batch["mask_labels"] = torch.stack([row["mask_labels"] for row in rows])
            batch["mask_label_valid"] = torch.tensor([row["mask_label_valid"] for row in rows])
        return batch


__all__ = ["ViP2ClipCollator", "count_masks", "undecoded"]
