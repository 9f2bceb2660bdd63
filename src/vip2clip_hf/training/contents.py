"""Contents of training data, to notice that files were replaced under the same names."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.collator import undecoded


if TYPE_CHECKING:
    from datasets import Dataset


def content_hash(image: dict[str, Any] | None) -> str | None:
    """
    Hash an image file.

    Args:
        image (`dict`, *optional*): undecoded image `{"path": ..., "bytes": ...}`.

    Returns:
        `str`, *optional*: SHA-256 of the file, as 64 hexadecimal digits. `None` without an image.

    Raises:
        OSError: if the file cannot be read.
    """
    if image is None:
        return None
    if image.get("bytes") is not None:
        return hashlib.sha256(image["bytes"]).hexdigest()
    try:
        with open(Path(image["path"]), "rb") as file:
            return _hash_file(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image file {image['path']!r} not found; check the path.") from error


def _hash_file(file: Any) -> str:
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def describe_contents(dataset: "Dataset", mask_threshold: int | float | None = None) -> dict[str, str]:
    """
    Describe what a model is trained on: the contents of all images and masks, in order, and their labels.

    Args:
        dataset (`datasets.Dataset`): dataset to train on. Names of files do not matter.
        mask_threshold (`int` or `float`, *optional*): mask threshold of the trainer.

    Returns:
        `dict[str, str]`: number and hash of `images`, `masks` and `labels`, and the mask thresholds. Two datasets with
        the same values give the same training.

    Raises:
        OSError: if a file cannot be read.
    """
    dataset = undecoded(dataset)
    labels = list(dataset["label"])
    images = [content_hash(image) for image in dataset["image"]]
    masks = [content_hash(mask) for mask in dataset["mask"]] if "mask" in dataset.column_names else []
    thresholds: list[Any] = [mask_threshold] if mask_threshold is not None else []
    if "mask_threshold" in dataset.column_names:
        thresholds = list(dataset["mask_threshold"])
    found = ", ".join(map(str, sorted(set(thresholds), key=str)))
    if len(set(thresholds)) > 1:
        found += f" ({_digest(thresholds)})"
    return {
        "images": f"{len(images)} ({_digest(images)})",
        "masks": f"{sum(mask is not None for mask in masks)} ({_digest(masks)})",
        "labels": f"{labels.count(0)} normal, {labels.count(1)} anomalous ({_digest(labels)})",
        "mask_threshold": found or "of the image processor",
    }


def _digest(values: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(values)).encode()).hexdigest()[:12]


__all__ = ["content_hash", "describe_contents"]
