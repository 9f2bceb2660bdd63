"""Record the training datasets of a checkpoint and detect their images in an evaluation."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .image_hashes import among, image_hashes, pack_hashes, unpack_hashes
from .targets import undecoded


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
# Checkpoints of earlier versions contain hashes of up to 32 files: of their size and their first bytes.
_HEAD_BYTES = 4096


def describe_training_set(
    dataset: "Dataset", name: str, benchmark: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """
    Describe a dataset as an entry of `provenance.training_sets`. All images are opened once, to compute their hashes.

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
        `dict`: `name`, `benchmark`, `split`, `categories`, `num_images`, `num_anomalous_images` and `hashes`, a dict
        with 32 bytes for each image. They are computed from the picture, so a copy in another format is found.

    Raises:
        ImportError: if `datasets` is not installed.
    """
    labels = dataset["label"]
    return {
        "name": name,
        "benchmark": benchmark,
        "split": split,
        "categories": list(dict.fromkeys(dataset["category"])),
        "num_images": len(labels),
        "num_anomalous_images": sum(label == 1 for label in labels),
        "hashes": pack_hashes(image_hashes(dataset)),
    }


def find_training_overlap(
    training_sets: Iterable[Mapping[str, Any]] | None, dataset: "Dataset", benchmark: str | None = None
) -> list[str]:
    """
    Check whether a checkpoint was trained on images of a dataset, so that results on it are not zero-shot.

    All images of the dataset are opened once, if the checkpoint contains hashes of its training images. Renamed copies
    and copies in another format are found. Copies that are cropped, turned or strongly compressed are not.

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
        OSError: if an image file cannot be opened, for checkpoints of earlier versions.
    """
    training_sets = list(training_sets or [])
    known = [unpack_hashes(entry.get("hashes")) for entry in training_sets]
    present = image_hashes(dataset) if any(hashes is not None for hashes in known) else None
    files = _file_hashes(dataset) if any(_sample(entry) for entry in training_sets) else set()
    found = []
    for entry, hashes in zip(training_sets, known):
        name, sample = entry.get("name"), _sample(entry)
        number = int(among(present, hashes).sum()) if present is not None and hashes is not None else 0
        share = sum(one in files for one in sample) / len(sample) if sample else 0.0
        if number and present is not None:
            found.append(f"trained on {name} ({number} of {len(present)} evaluated images)")
        elif share:
            found.append(f"trained on {name} (about {share:.0%} of its images are in this dataset)")
        elif benchmark is not None and entry.get("benchmark") == benchmark:
            found.append(f"trained on the same benchmark, {benchmark} ({entry.get('split')} split)")
    return found


def zero_shot_claim(training_sets: Iterable[Mapping[str, Any]] | None, trained_on: list[str]) -> str:
    """
    Say whether a result is zero-shot, as far as a checkpoint records its training images.

    Args:
        training_sets (`Iterable[Mapping[str, Any]]`, *optional*): `provenance.training_sets` of the checkpoint.
        trained_on (`list[str]`): result of `find_training_overlap`.

    Returns:
        `str`: `"not zero-shot: ..."`, `"not verified: ..."` or `"zero-shot: ..."`, with the reason.
    """
    if trained_on:
        return f"not zero-shot: {'; '.join(trained_on)}"
    entries = list(training_sets or [])
    if not entries:
        return "not verified: the checkpoint does not record its training datasets"
    unknown = [str(entry.get("name")) for entry in entries if unpack_hashes(entry.get("hashes")) is None]
    if unknown:
        return (
            f"not verified: the checkpoint does not contain hashes of all training images of {', '.join(unknown)} "
            "that this version can read; none of the evaluated images was found"
        )
    total = sum(int(entry.get("num_images") or 0) for entry in entries)
    return f"zero-shot: none of the evaluated images was found among the {total} recorded training images"


def _sample(entry: Mapping[str, Any]) -> list[str]:
    """File hashes in an entry of an earlier version."""
    hashes = entry.get("image_hashes")
    return hashes.split() if isinstance(hashes, str) else []


def _file_hash(image: Mapping[str, Any]) -> tuple[str, str]:
    """Hash of the size and first bytes of an image file `{"path": ..., "bytes": ...}`, as in earlier versions, and of
    the whole file."""
    if image.get("bytes") is not None:
        content = image["bytes"]
    else:
        with open(image["path"], "rb") as file:
            content = file.read()
    head = b"%d:" % len(content) + content[:_HEAD_BYTES]
    return hashlib.sha256(head).hexdigest()[:8], hashlib.sha256(content).hexdigest()


def _file_hashes(dataset: "Dataset") -> set[str]:
    """Hashes of all files as in earlier versions. Hashes that different files have, such as bitmaps with a uniform
    border, are left out, because they do not identify an image."""
    files = defaultdict(set)
    images = undecoded(dataset).select_columns(["image"])
    for number in range(len(images)):
        short, whole = _file_hash(images[number]["image"])
        files[short].add(whole)
    shared = {short for short, contents in files.items() if len(contents) > 1}
    if shared:
        count = sum(len(files[short]) for short in shared)
        logger.warning(
            f"{count} different images have the same hash of an earlier version and are not compared with the images "
            "of this checkpoint; train it again to record hashes of the pictures."
        )
    return set(files) - shared


__all__ = ["describe_training_set", "find_training_overlap", "zero_shot_claim"]
