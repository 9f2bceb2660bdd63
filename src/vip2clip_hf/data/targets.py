"""Read what rows of a dataset are compared with: labels, masks, and the regions of masks. No model is involved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import load_mask, mask_labels
from ..models.vip2clip.mask_options_vip2clip import MASK_OPTIONS, MaskOptions
from ..models.vip2clip.mask_regions_vip2clip import ReducedMask
from ..utils.extras import extra


if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image


def count_masks(dataset: "Dataset") -> int:
    """Number of anomalous images with a mask. No image is opened."""
    columns = dataset.select_columns(["mask", "label"]).with_format("arrow")[:]
    return sum(mask.is_valid and label.as_py() == 1 for mask, label in zip(columns["mask"], columns["label"]))


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
    """Turn off decoding of image columns. They are decoded later, with errors that name unreadable files."""
    with extra("data", "Reading a dataset"):
        from datasets import Image

    for column in columns:
        dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


class RowTargets:
    """
    Labels and masks of rows of a dataset.

    Args:
        rows (`Sequence[dict]`): rows with `image` and `label`, and optionally `mask`, `image_id`, `category` and
            `defect`. A `mask_threshold` or another option of [`MaskOptions`] in a row overrides that of `read_masks`.

    Attributes:
        ids (`list[str]`): id of every image.
        is_labelled (`bool`): whether the rows have labels.

    Raises:
        ValueError: if a column is missing, a label is not 0 or 1, or only some images have labels. The message
            contains the ids of the images.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        if not all("image" in row and "label" in row for row in rows):
            raise ValueError(
                f"Rows have the columns {', '.join(sorted(rows[0]))}; expected image and label. If a Trainer removed "
                "them, set remove_unused_columns=False."
            )
        self._rows = rows
        self._masks: list[ReducedMask] = []
        self.ids = [row.get("image_id") for row in rows]
        self._labels = [row["label"] for row in rows]
        unknown = [image_id for image_id, label in zip(self.ids, self._labels) if label not in (None, 0, 1)]
        if unknown:
            raise ValueError(
                f"The labels of the images {unknown} are "
                f"{[label for label in self._labels if label not in (None, 0, 1)]}; "
                "expected 0 (normal) or 1 (anomalous)."
            )
        unlabelled = [image_id for image_id, label in zip(self.ids, self._labels) if label is None]
        if 0 < len(unlabelled) < len(rows):
            raise ValueError(
                f"The images {unlabelled} have no label; expected labels for all images of a batch or none."
            )
        self.is_labelled = not unlabelled

    def read_masks(self, options: MaskOptions, size: tuple[int, int] | None) -> None:
        """
        Read the masks.

        Args:
            options ([`MaskOptions`]): how to read masks.
            size (`tuple[int, int]`, *optional*): height and width to resize masks to. By default, they are not
                resized.

        Raises:
            OSError: if a mask cannot be read.
            ValueError: if a mask is invalid, or differs in size from its image.
        """
        self._masks = []
        for number, row in enumerate(self._rows):
            own = MaskOptions.named(row).over(options)
            self._masks.append(mask_labels(row.get("mask"), own, row["image"], size=size, position=number))

    def tensors(self) -> dict[str, torch.Tensor]:
        """
        Return labels and masks.

        Returns:
            `dict[str, torch.Tensor]`: for rows with labels, `labels` of shape `(batch_size,)`. If masks were read,
            also `mask_labels` of shape `(batch_size, height, width)`, uint8, and `mask_valid` of shape
            `(batch_size,)`, False for anomalous images without a mask.

        Raises:
            ValueError: if the mask of a normal image has anomalous pixels. The message contains the ids.
        """
        found: dict[str, torch.Tensor] = {}
        if self.is_labelled:
            found["labels"] = torch.tensor(self._labels)
        if self._masks:
            found["mask_labels"] = torch.stack([torch.from_numpy(mask.labels) for mask in self._masks])
            contradictory = (found["labels"] == 0) & found["mask_labels"].flatten(1).any(dim=1)
            if contradictory.any():
                named = [image_id for image_id, bad in zip(self.ids, contradictory) if bad]
                raise ValueError(
                    f"The images {named} are labelled normal but have anomalous pixels in their masks; expected empty "
                    "masks. Correct the labels or the masks."
                )
            has_mask = [row.get("mask") is not None for row in self._rows]
            found["mask_valid"] = torch.tensor([label == 0 or there for label, there in zip(self._labels, has_mask)])
        return found

    def metadata(self) -> dict[str, list[Any]]:
        """
        Return what is not an input of a method.

        Returns:
            `dict[str, list]`: `categories`, `defects` and `image_ids`. If masks were read, also `regions`: for each
            image with a mask, the number of its regions, how many of them have no pixel when the mask is resized, and
            how many of these are lost; otherwise `None`.
        """
        found: dict[str, list[Any]] = {
            "categories": [row.get("category") for row in self._rows],
            "defects": [row.get("defect") for row in self._rows],
            "image_ids": self.ids,
        }
        if self._masks:
            found["regions"] = [
                None if row.get("mask") is None else (mask.num_regions, mask.num_small_regions, mask.num_lost_regions)
                for row, mask in zip(self._rows, self._masks)
            ]
        return found


class DetectorCollator:
    """
    Collate rows of a dataset for a detector: its inputs, and the labels and masks they are compared with.

    Args:
        prepare (`Mapping[str, Callable]`): function by category that takes a list of RGB photos and returns the inputs
            of a batch, see [`Detector`]. All rows of a batch have the same function.
        mask_size (`int`, *optional*): side of the masks in pixels. By default, masks are not read.
        mask_options ([`MaskOptions`]): how to read masks.
        reading (`Mapping[str, Any]`): how to read images, see [`load_image`].

    Returns:
        `dict`: `inputs`, the result of `prepare`, and the results of `tensors` and `metadata` of [`RowTargets`].

    Raises:
        OSError: if an image or mask cannot be read.
        ValueError: if labels or masks are invalid, see [`RowTargets`]. The message contains the ids of the images.
    """

    def __init__(
        self,
        prepare: Mapping[str, Callable[[Sequence["Image.Image"]], Any]],
        mask_size: int | None,
        mask_options: MaskOptions,
        reading: Mapping[str, Any],
    ) -> None:
        self.prepare, self.mask_size = prepare, mask_size
        self.mask_options, self.reading = mask_options, dict(reading)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        targets = RowTargets(rows)
        try:
            images = [load_image(row["image"], **self.reading) for row in rows]
            inputs = self.prepare[rows[0]["category"]](images)
            if self.mask_size is not None and targets.is_labelled:
                targets.read_masks(self.mask_options, (self.mask_size, self.mask_size))
        except ValueError as error:
            raise ValueError(f"{error} The images of the batch are {targets.ids}.") from error
        return {"inputs": inputs, **targets.tensors(), **targets.metadata()}


class ReadableRows:
    """
    Collate the rows whose image and mask can be read.

    Args:
        collator (`Callable`): collates a list of rows, such as a [`DetectorCollator`].
        reading (`Mapping[str, Any]`): how to read images, see [`load_image`].

    Returns:
        `tuple[dict, list[int], dict[str, str]]`: the batch, the numbers of its rows, and the reason by `image_id` of
        each other row.

    Raises:
        ValueError: if all can be read, but not collated.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], reading: Mapping[str, Any]) -> None:
        self.collator, self.reading = collator, dict(reading)

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
            load_image(row["image"], **self.reading)
            if row.get("mask") is not None:
                load_mask(row["mask"])
        except (OSError, ValueError) as error:
            return str(error)
        return None


__all__ = ["DetectorCollator", "ReadableRows", "RowTargets", "count_masks", "shared_mask_options", "undecoded"]
