"""Folders of images as `datasets.Dataset`, and rows of them as model inputs. Needs the extra `train`."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from .image_processing_vip2clip import IMAGE_EXTENSIONS, LABELS, ViP2ClipImageProcessor


FEATURES = Features(
    {
        "image": Image(),
        "mask": Image(),
        "label": ClassLabel(names=list(LABELS)),
        "category": Value("string"),
        "defect": Value("string"),
        "image_id": Value("string"),
    }
)
NORMAL_FOLDER = "good"


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")
    )


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _masks_by_stem(folder: Path) -> dict[str, list[Path]]:
    masks = {}
    for path in _image_files(folder):
        masks.setdefault(path.stem, []).append(path)
    return masks


def _find_mask(masks: dict[str, list[Path]], image: Path) -> Path | None:
    """The mask of an image by its stem: `<stem>_mask.png` or `<stem>.png`."""
    found = [path for stem in (f"{image.stem}_mask", image.stem) for path in masks.get(stem, [])]
    if len(found) > 1:
        raise ValueError(f"{image} has more than one mask: {', '.join(map(str, found))}; expected one.")
    return found[0] if found else None


def load_folder(root: str | os.PathLike, split: str = "test", categories: Sequence[str] | None = None) -> Dataset:
    """
    A folder in the layout of MVTec AD:

    ```
    root/<category>/test/good/*.png
    root/<category>/test/<defect>/*.png
    root/<category>/ground_truth/<defect>/<stem>_mask.png
    ```

    `root` can also be one category, the folder with `test` in it. No image is read before it is asked for.

    Args:
        root (`str` or `os.PathLike`):
            The folder.
        split (`str`, defaults to `"test"`):
            `"test"` or `"train"`.
        categories (`Sequence[str]`, *optional*):
            Categories to read; all, when not given.

    Returns:
        `datasets.Dataset` with the columns `image`, `mask` (None where there is none), `label` (0 normal, 1
        anomalous), `category`, `defect` and `image_id` (path below `root`).

    Raises:
        OSError: no such folder.
        ValueError: no images in this layout, an unknown category, or two masks for one image.
    """
    root = Path(root)
    if not root.is_dir():
        raise OSError(f"Folder {str(root)!r} not found; expected the root of a data set.")
    folders = [root] if (root / split).is_dir() else sorted(p for p in _folders(root) if (p / split).is_dir())
    names = [folder.resolve().name for folder in folders]
    if categories is not None:
        unknown = sorted(set(categories) - set(names))
        if unknown:
            raise ValueError(f"No category {', '.join(unknown)} in {str(root)!r}; found {', '.join(names) or 'none'}.")
        folders = [folder for folder, name in zip(folders, names) if name in categories]

    rows = []
    for category in folders:
        for defect in sorted(_folders(category / split)):
            anomalous = defect.name != NORMAL_FOLDER
            masks = _masks_by_stem(category / "ground_truth" / defect.name)
            for image in _image_files(defect):
                mask = _find_mask(masks, image) if anomalous else None
                rows.append(
                    {
                        "image": str(image),
                        "mask": None if mask is None else str(mask),
                        "label": int(anomalous),
                        "category": category.resolve().name,
                        "defect": defect.name if anomalous else "",
                        "image_id": image.relative_to(root).as_posix(),
                    }
                )
    if not rows:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
        raise ValueError(
            f"No images found in {str(root)!r}; expected <category>/{split}/good/*.png and "
            f"<category>/{split}/<defect>/*.png. The folder holds: {found}."
        )
    return Dataset.from_list(rows, features=FEATURES)


@dataclass
class ViP2ClipCollator:
    """
    Rows of a data set as inputs of the model, through its image processor.

    Args:
        image_processor ([`ViP2ClipImageProcessor`]):
            Prepares images and masks.
        pixel_labels (`bool`, defaults to `True`):
            Whether to make mask labels. Leave it off for data where no anomalous image has a mask: the empty masks of
            the normal images alone would teach the model to mark nothing.

    Returns:
        `dict` with `pixel_values`, `labels` and, with pixel labels, `mask_labels` and `mask_label_valid` (False for
        anomalous images without a mask; a normal image without a mask file has an empty mask, which is valid).
    """

    image_processor: ViP2ClipImageProcessor
    pixel_labels: bool = True

    def __call__(self, rows: Iterable[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = list(rows)
        if not all("image" in row and "label" in row for row in rows):
            raise ValueError(
                f"Expected rows with the columns image and label, found {sorted(rows[0])}; a Trainer drops columns "
                "unless remove_unused_columns=False."
            )
        masks = [row.get("mask") for row in rows]
        maps = {"segmentation_maps": masks} if self.pixel_labels else {}
        try:
            batch = dict(self.image_processor([row["image"] for row in rows], return_tensors="pt", **maps))
        except ValueError as error:
            ids = [row.get("image_id") for row in rows]
            raise ValueError(f"{error} The images of the batch are {ids}.") from error
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        if self.pixel_labels:
            batch["mask_label_valid"] = torch.tensor(
                [row["label"] == 0 or mask is not None for row, mask in zip(rows, masks)]
            )
        return batch


__all__ = ["ViP2ClipCollator", "load_folder"]
