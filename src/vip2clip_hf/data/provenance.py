"""Record the training datasets of a checkpoint and detect their images in an evaluation."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .collator import undecoded


if TYPE_CHECKING:
    from datasets import Dataset


# A training set is represented by its smallest image hashes, a random but reproducible sample. If 10 % of the training
# images are evaluated, 32 hashes detect this with a probability of 97 %.
NUM_HASHES = 32
# Enough of a compressed image to distinguish it from other files of the same size.
HEAD_BYTES = 4096


def image_hash(image: Mapping[str, Any]) -> str:
    """Hash of the size and first bytes of an image file `{"path": ..., "bytes": ...}`, 8 hexadecimal digits."""
    if image.get("bytes") is not None:
        size, head = len(image["bytes"]), image["bytes"][:HEAD_BYTES]
    else:
        size = os.path.getsize(image["path"])
        with open(image["path"], "rb") as file:
            head = file.read(HEAD_BYTES)
    return hashlib.sha256(b"%d:" % size + head).hexdigest()[:8]


def image_hashes(dataset: "Dataset") -> list[str]:
    """Hash of every image, without decoding. File names do not matter, so a renamed copy has the same hashes."""
    return [image_hash(image) for image in undecoded(dataset)["image"]]


def describe_training_set(
    dataset: "Dataset", name: str, benchmark: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """
    Describe a dataset as an entry of `provenance.training_sets`.

    Args:
        dataset (`datasets.Dataset`):
            Dataset returned by [`load_folder`] or [`load_benchmark`].
        name (`str`):
            Name of the benchmark or folder. It is published with the checkpoint, so it must not be a path.
        benchmark (`str`, *optional*):
            Name of the benchmark, if the dataset is one.
        split (`str`, defaults to `"test"`):
            Split of the dataset.

    Returns:
        `dict`: `name`, `benchmark`, `split`, `categories`, `num_images`, `num_anomalous_images` and `image_hashes`, a
        string of up to 32 hashes with 8 hexadecimal digits each.

    Raises:
        ImportError: if `datasets` is not installed.
        OSError: if an image cannot be read.
    """
    labels = dataset["label"]
    return {
        "name": name,
        "benchmark": benchmark,
        "split": split,
        "categories": list(dict.fromkeys(dataset["category"])),
        "num_images": len(labels),
        "num_anomalous_images": sum(label == 1 for label in labels),
        "image_hashes": " ".join(sorted(set(image_hashes(dataset)))[:NUM_HASHES]),
    }


def find_training_overlap(
    training_sets: Iterable[Mapping[str, Any]] | None, dataset: "Dataset", benchmark: str | None = None
) -> list[str]:
    """
    Check whether a checkpoint was trained on images of a dataset, so that results on it are not zero-shot.

    Args:
        training_sets (`Iterable[Mapping[str, Any]]`, *optional*):
            `provenance.training_sets` of the checkpoint.
        dataset (`datasets.Dataset`):
            Dataset to evaluate.
        benchmark (`str`, *optional*):
            Name of the benchmark, if the dataset is one.

    Returns:
        `list[str]`: one reason per training set with the same images or the same benchmark. Empty if there is no
        overlap or no training set is recorded.

    Raises:
        ImportError: if `datasets` is not installed.
        OSError: if an image cannot be read.
    """
    training_sets = list(training_sets or [])
    present = set(image_hashes(dataset)) if training_sets else set()
    found = []
    for entry in training_sets:
        hashes = str(entry.get("image_hashes") or "").split()
        share = sum(image in present for image in hashes) / len(hashes) if hashes else 0.0
        name = entry.get("name")
        if share:
            found.append(f"trained on {name} (about {share:.0%} of its images are in this dataset)")
        elif benchmark is not None and entry.get("benchmark") == benchmark:
            found.append(f"trained on the same benchmark, {benchmark} ({entry.get('split')} split)")
    return found


__all__ = ["describe_training_set", "find_training_overlap"]
