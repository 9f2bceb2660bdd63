"""What a checkpoint was trained on, and whether that is met again in an evaluation."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .collator import undecoded


if TYPE_CHECKING:
    from datasets import Dataset


# The smallest hashes of the images stand for all of them: a random choice that is the same for the same images. If a
# tenth of the training images is evaluated, 32 find it with a probability of 97 %.
NUM_HASHES = 32
# Enough of a compressed image to tell it from others of the same size.
HEAD_BYTES = 4096


def image_hash(image: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits from size and first bytes of an image file, `{"path": ..., "bytes": ...}`."""
    if image.get("bytes") is not None:
        size, head = len(image["bytes"]), image["bytes"][:HEAD_BYTES]
    else:
        size = os.path.getsize(image["path"])
        with open(image["path"], "rb") as file:
            head = file.read(HEAD_BYTES)
    return hashlib.sha256(b"%d:" % size + head).hexdigest()[:8]


def image_hashes(dataset: "Dataset") -> list[str]:
    """The hash of every image. Names do not count, so that a re-packed copy has the same ones; no image is decoded."""
    return [image_hash(image) for image in undecoded(dataset)["image"]]


def describe_training_set(
    dataset: "Dataset", name: str, benchmark: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """
    An entry for `config.training_sets`.

    Args:
        dataset (`datasets.Dataset`):
            As `load_folder` and `load_benchmark` give it.
        name (`str`):
            What to call it: the benchmark, or the name of the folder. Never a path.
        benchmark (`str`, *optional*):
            The benchmark it is.
        split (`str`, defaults to `"test"`):
            Its split.

    Returns:
        `dict`: `name`, `benchmark`, `split`, `categories`, `num_images`, `num_anomalous_images` and `image_hashes`,
        32 hashes of 8 hexadecimal digits each (fewer for fewer images).
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
    Why figures on a data set would not be those of things never seen.

    Args:
        training_sets:
            `config.training_sets`.
        dataset (`datasets.Dataset`):
            What is to be evaluated.
        benchmark (`str`, *optional*):
            The benchmark it is.

    Returns:
        `list[str]`: a sentence for every training set that is met again; empty when none is, or none is recorded.
    """
    training_sets = list(training_sets or [])
    present = set(image_hashes(dataset)) if training_sets else set()
    found = []
    for entry in training_sets:
        hashes = str(entry.get("image_hashes") or "").split()
        share = sum(one in present for one in hashes) / len(hashes) if hashes else 0.0
        name = entry.get("name")
        if share:
            found.append(f"trained on {name}, about {share:.0%} of whose images are among those evaluated")
        elif benchmark is not None and entry.get("benchmark") == benchmark:
            found.append(f"trained on the same benchmark, {benchmark} ({entry.get('split')} split)")
    return found


__all__ = ["describe_training_set", "find_training_overlap"]
