"""Collate the rows of a dataset into model inputs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..models.vip2clip.image_loading_vip2clip import load_image, reading_options
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.mask_loading_vip2clip import load_mask, mask_labels
from ..models.vip2clip.mask_options_vip2clip import MASK_OPTIONS, MaskOptions
from ..models.vip2clip.mask_regions_vip2clip import ReducedMask
from ..utils.extras import extra


if TYPE_CHECKING:
    from datasets import Dataset


def count_masks(dataset: "Dataset") -> int:
    """Number of anomalous images with a mask. No image is opened."""
    columns = dataset.select_columns(["mask", "label"]).with_format("arrow")[:]
    return sum(mask.is_valid and label.as_py() == 1 for mask, label in zip(columns["mask"], columns["label"]))


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


def shared_mask_options(dataset: "Dataset") -> MaskOptions:
    """
    Options of reading masks that all rows of a dataset have in common.

    Args:
        dataset (`datasets.Dataset`): dataset, with or without columns such as `mask_threshold`.

    Returns:
        [`MaskOptions`]: the options with one value in the whole dataset.
    """
    values = {name: set(dataset[name]) for name in MASK_OPTIONS.values() if name in dataset.column_names}
    return MaskOptions.named({name: next(iter(found)) for name, found in values.items() if len(found) == 1})


def undecoded(dataset: "Dataset", columns: Iterable[str] = ("image", "mask")) -> "Dataset":
    """Turn off decoding of image columns. The image processor decodes them and its errors name unreadable files."""
    with extra("data", "Reading a dataset"):
        from datasets import Image

    for column in columns:
        dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


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
        if "patch_embeds" in rows[0]:
            return self._collate_cached(rows)
        if not all("image" in row and "label" in row for row in rows):
            raise ValueError(
                f"Rows have the columns {', '.join(sorted(rows[0]))}; expected image and label. If a Trainer removed "
                "them, set remove_unused_columns=False."
            )
        ids = [row.get("image_id") for row in rows]
        labels = [row["label"] for row in rows]
        unknown = [image_id for image_id, label in zip(ids, labels) if label not in (None, 0, 1)]
        if unknown:
            raise ValueError(
                f"The labels of the images {unknown} are {[label for label in labels if label not in (None, 0, 1)]}; "
                "expected 0 (normal) or 1 (anomalous)."
            )
        unlabelled = [image_id for image_id, label in zip(ids, labels) if label is None]
        if 0 < len(unlabelled) < len(rows):
            raise ValueError(
                f"The images {unlabelled} have no label; expected labels for all images of a batch or none."
            )
        masks = [row.get("mask") for row in rows]
        reduced: list[ReducedMask] = []
        try:
            batch = dict(self.image_processor([row["image"] for row in rows], return_tensors="pt"))
            if self.pixel_labels and not unlabelled:
                reduced = [self._mask(row, position) for position, row in enumerate(rows)]
                batch["mask_labels"] = torch.stack([torch.from_numpy(mask.labels) for mask in reduced])
        except ValueError as error:
            raise ValueError(f"{error} The images of the batch are {ids}.") from error
        if not unlabelled:
            batch["labels"] = torch.tensor(labels)
        if "mask_labels" in batch:
            contradictory = (batch["labels"] == 0) & batch["mask_labels"].flatten(1).any(dim=1)
            if contradictory.any():
                found = [image_id for image_id, bad in zip(ids, contradictory) if bad]
                raise ValueError(
                    f"The images {found} are labelled normal but have anomalous pixels in their masks; expected empty "
                    "masks. Correct the labels or the masks."
                )
            batch["mask_valid"] = torch.tensor([label == 0 or mask is not None for label, mask in zip(labels, masks)])
        if self.return_metadata:
            batch["categories"] = [row.get("category") for row in rows]
            batch["defects"] = [row.get("defect") for row in rows]
            batch["image_ids"] = ids
            if reduced:
                batch["regions"] = [
                    None if mask is None else (found.num_regions, found.num_small_regions, found.num_lost_regions)
                    for mask, found in zip(masks, reduced)
                ]
        return batch

    def _mask(self, row: dict[str, Any], position: int) -> ReducedMask:
        """Read the mask of a row at the size of the model."""
        defaults = resolve_mask_options(self.image_processor, self.mask_threshold, self.mask_options)
        size = dict(self.image_processor.size) if self.image_processor.do_resize else {}
        target = (size["height"], size["width"]) if size else None
        options = MaskOptions.named(row).over(defaults)
        return mask_labels(row.get("mask"), options, row["image"], size=target, position=position)

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


class ReadableRows:
    """
    Collate the rows whose image and mask can be read.

    Args:
        collator ([`ViP2ClipCollator`]): collates them.

    Returns:
        `tuple[dict, list[int], dict[str, str]]`: the batch, the numbers of its rows, and the reason by `image_id` of
        each other row.

    Raises:
        ValueError: if all can be read, but not collated, see [`ViP2ClipCollator`].
    """

    def __init__(self, collator: ViP2ClipCollator) -> None:
        self.collator = collator

    def __call__(self, rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], list[int], dict[str, str]]:
        rows = list(rows)
        try:
            return self.collator(rows), list(range(len(rows))), {}
        except (OSError, ValueError):
            failed = {number: reason for number, row in enumerate(rows) if (reason := self._problem(row))}
            if not failed:
                raise
        kept = [number for number in range(len(rows)) if number not in failed]
        named = {str(rows[number].get("image_id") or number): reason for number, reason in failed.items()}
        return self.collator([rows[number] for number in kept]) if kept else {}, kept, named

    def _problem(self, row: dict[str, Any]) -> str | None:
        """Return why the image or the mask of a row cannot be read."""
        try:
            load_image(row["image"], **reading_options(self.collator.image_processor))
            if row.get("mask") is not None:
                load_mask(row["mask"])
        except (OSError, ValueError) as error:
            return str(error)
        return None


__all__ = [
    "ReadableRows", "ViP2ClipCollator", "count_masks", "resolve_mask_options", "shared_mask_options", "undecoded",
]  # fmt: skip
