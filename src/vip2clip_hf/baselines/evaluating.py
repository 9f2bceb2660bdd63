"""Evaluate a baseline on several datasets."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.sources import DataSource
from ..evaluation.reference_sets import ReferenceChoice
from ..evaluation.runner import evaluate_sets
from ..models.loading import device_of_process
from .detector_loading import check_method, load_detector
from .methods import find_method


def evaluate_method(
    method: str | None,
    sets: Sequence[DataSource],
    output: str | os.PathLike,
    *,
    clip: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    backbone: str | os.PathLike | None = None,
    device: str | None = None,
    dtype: torch.dtype | str = "float32",
    name: str | None = None,
    class_name: str | Mapping[str, str] | None = None,
    bit_depth: int | None = None,
    page: int | None = None,
    references: ReferenceChoice | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Load a baseline and evaluate it on several datasets, with the outputs of [`evaluate_sets`].

    Under `accelerate launch` or `torchrun`, this also sets up communication between the processes.

    Args:
        method, clip, checkpoint, backbone, dtype, class_name: see [`load_detector`].
        sets (`Sequence[DataSource]`):
            Datasets, with different names. Every image needs a label.
        output (`str` or `os.PathLike`):
            Folder to write to. It must be new or empty, or contain the evaluation to resume.
        device (`str`, *optional*):
            Device of the model. By default, an accelerator if available, otherwise the CPU.
        name (`str`, *optional*):
            Title of the results in the tables. By default, the name of the method with "(this run)", because the
            tables also contain published results.
        bit_depth, page (*optional*):
            How to read images, see [`load_image`]. They default to those of the image processor.
        references ([`ReferenceChoice`], *optional*):
            Photos of good parts to compare with, for methods that use them.
        options:
            Further arguments of [`evaluate_sets`].

    Returns:
        `list[dict]`: see [`evaluate_sets`].

    Raises:
        ImportError: if a package of the extra `train` is not installed.
        OSError: if the checkpoint, the backbone or images cannot be read, or the folder cannot be written or contains
            something else.
        RuntimeError: if weights are missing.
        ValueError: if an argument is invalid, or the method does not use references or class names that are set.
    """
    choice = ReferenceChoice() if references is None else references
    key = find_method(str(method)).key if checkpoint is None else check_method(method, checkpoint)
    found = find_method(key)
    if (choice.counts or choice.folder is not None) and not found.uses_references:
        raise ValueError(f"{found.name} does not use references; remove --num-references and --references.")
    if class_name is not None and not found.uses_class_names:
        raise ValueError(f"{found.name} does not use class names; remove --class-name.")
    detector = load_detector(
        key,
        clip=clip,
        checkpoint=checkpoint,
        backbone=backbone,
        device=device_of_process(device),
        dtype=dtype,
        class_name=class_name,
    )
    if not choice.own:
        detector = detector.with_references(None)
    processor = detector.image_processor
    processor.bit_depth = processor.bit_depth if bit_depth is None else bit_depth
    processor.page = processor.page if page is None else page
    title = title_of(key) if name is None else name
    return evaluate_sets(detector, None, sets, output, name=title, references=choice, **options)


def title_of(method: str) -> str:
    """
    Return the title of the results of a method in tables that also contain published results.

    Args:
        method (`str`): one of `METHODS`.

    Returns:
        `str`: the title.
    """
    return f"{find_method(method).name} (this run)"


__all__ = ["evaluate_method", "title_of"]
