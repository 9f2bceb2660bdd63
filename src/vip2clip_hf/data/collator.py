"""Collate the rows of a dataset into model inputs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .targets import RowTargets, count_masks, undecoded


if TYPE_CHECKING:
    from datasets import Dataset


def resolve_mask_options(
    image_processor: Any, mask_threshold: int | float | None = None, mask_options: MaskOptions | None = None
) -> MaskOptions:
    """
    Options of reading masks, in the order of precedence: `mask_threshold`, `mask_options`, the image processor.

    Args:
        image_processor ([`ViP2ClipImageProcessor`]): image processor for images and masks.
        mask_threshold (`int` or `float`, *optional*): mask values greater than this are anomalous.
        mask_options ([`MaskOptions`], *optional*): how to read masks.

    Returns:
        [`MaskOptions`]: the options, all set.

    Raises:
        ValueError: if a value is not allowed.
    """
    options = MaskOptions(threshold=mask_threshold).over(mask_options or MaskOptions())
    return options.over(MaskOptions.of(image_processor))


@dataclass
class ViP2ClipCollator:
    """
    Collate the rows of a dataset into model inputs, using the image processor.

    Args:
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor for images and masks.
        pixel_labels (`bool`, defaults to `True`):
            Whether to return mask labels. Set it to `False` if no anomalous image has a mask: the model would learn
            empty masks from the normal images alone. [`ViP2ClipCollator.for_dataset`] sets it from the dataset.
        mask_threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous. Defaults to the value of the image processor (0). For a
            benchmark, use `BENCHMARKS[name].mask_threshold`.
        return_metadata (`bool`, defaults to `False`):
            Whether to add the lists `categories`, `defects`, `image_ids` and `regions`, which are not inputs of the
            model. `regions` contains, for each image with a mask, the number of its regions, how many of them have no
            pixel when the mask is resized, and how many of these are lost; otherwise `None`.
        mask_options ([`MaskOptions`], *optional*):
            How to read masks. Options that are not set are those of the image processor.
        class_names (`bool`, defaults to `False`):
            Whether to add `class_name`, a list with the category of each image, for models whose prompts contain it.

    A `mask_threshold`, `mask_channel`, `mask_invert`, `mask_orientation` or `keep_small_regions` in a row overrides
    the value of the collator. `datasets` applies the EXIF orientation of an image when it decodes it, so a mask drawn
    on the stored pixels is recognised in undecoded rows only, see [`undecoded`]. Rows of a [`FeatureCache`] contain
    embeddings instead of an image. Padding rows of [`TrainingRows`] are dropped, and `num_images` is the number of
    other rows. If it is 0, the batch contains one padding row, which must not count.

    Returns:
        `dict`: `pixel_values` of shape `(batch_size, 3, height, width)` and `labels` of shape `(batch_size,)`. With
        pixel labels also `mask_labels` of shape `(batch_size, height, width)` and `mask_valid` of shape
        `(batch_size,)`, which is False for anomalous images without a mask. A normal image without a mask has a valid,
        empty mask. For images without labels, only `pixel_values`.

    Raises:
        OSError: if an image or mask cannot be read.
        ValueError: if a column is missing, if a label is not 0 or 1, if only some images have labels, if a mask and
            its image differ in size, if the mask of a normal image has anomalous pixels, or if pixel values or
            embeddings are not finite. The message lists the images.
    """

    image_processor: ViP2ClipImageProcessor
    pixel_labels: bool = True
    mask_threshold: int | float | None = None
    return_metadata: bool = False
    mask_options: MaskOptions | None = None
    class_names: bool = False

    @classmethod
    def for_dataset(
        cls, image_processor: ViP2ClipImageProcessor, dataset: "Dataset", **options: Any
    ) -> "ViP2ClipCollator":
        """
        Create a collator with pixel labels if at least one anomalous image of the dataset has a mask.

        Args:
            image_processor ([`ViP2ClipImageProcessor`]): image processor for images and masks.
            dataset (`datasets.Dataset`): dataset to collate.
            **options: other arguments of [`ViP2ClipCollator`].

        Returns:
            `ViP2ClipCollator`: the collator.
        """
        return cls(image_processor, pixel_labels=count_masks(dataset) > 0, **options)

    def __call__(self, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        rows = list(rows)
        if "is_padding" not in rows[0]:
            return self._collate(rows)
        real = [row for row in rows if not row["is_padding"]]
        batch = self._collate(real or rows[:1])
        batch["image_ids"] = [row.get("image_id") for row in real or rows[:1]]
        batch["num_images"] = len(real)
        if not real and "mask_valid" in batch:
            batch["mask_valid"] = torch.zeros_like(batch["mask_valid"])
        return batch

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate_rows(rows)
        if self.class_names:
            batch["class_name"] = [row.get("category") for row in rows]
        return batch

    def _collate_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if "patch_embeds" in rows[0]:
            return self._collate_cached(rows)
        targets = RowTargets(rows)
        try:
            batch = dict(self.image_processor([row["image"] for row in rows], return_tensors="pt"))
            if self.pixel_labels and targets.is_labelled:
                options = resolve_mask_options(self.image_processor, self.mask_threshold, self.mask_options)
                targets.read_masks(options, self._mask_size())
        except ValueError as error:
            raise ValueError(f"{error} The images of the batch are {targets.ids}.") from error
        batch.update(targets.tensors())
        return {**batch, **targets.metadata()} if self.return_metadata else batch

    def _mask_size(self) -> tuple[int, int] | None:
        """Height and width of the images of the image processor, or `None` if it does not resize them."""
        size = dict(self.image_processor.size) if self.image_processor.do_resize else {}
        return (size["height"], size["width"]) if size else None

    def _collate_cached(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in ("image_embeds", "patch_embeds")}
        for name, embeds in batch.items():
            if not torch.isfinite(embeds).all():
                bad = [
                    row.get("image_id")
                    for row, finite in zip(rows, torch.isfinite(embeds).flatten(1).all(1))
                    if not finite
                ]
                raise ValueError(
                    f"{name} of the images {bad} contains NaN or infinite values; expected finite values."
                )
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        if self.pixel_labels:
            batch["mask_labels"] = torch.stack([row["mask_labels"] for row in rows])
            batch["mask_valid"] = torch.tensor([row["mask_valid"] for row in rows])
        return batch


__all__ = ["ViP2ClipCollator", "count_masks", "resolve_mask_options", "undecoded"]
