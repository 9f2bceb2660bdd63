"""Load a baseline as a detector, and evaluate it on several datasets."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import CLIPModel

from ..checkpoints.bundled import BUNDLED
from ..data.sources import DataSource
from ..evaluation.reference_sets import ReferenceChoice
from ..evaluation.runner import evaluate_sets
from ..models.loading import check_dtype, device_of_process, place_model
from ..models.vip2clip.checkpoint_files_vip2clip import find_file, read_json
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from .detector import BaselineDetector
from .methods import METHODS, create_model, find_method, method_of
from .registration import METHODS as REGISTERED


PROCESSOR_FILE = "preprocessor_config.json"


def method_of_checkpoint(checkpoint: str | os.PathLike) -> str | None:
    """
    Find the method that a checkpoint belongs to.

    Args:
        checkpoint (`str` or `os.PathLike`): folder or Hub id.

    Returns:
        `str`, *optional*: one of `METHODS`. `None` for another model, and if there is no checkpoint.

    Raises:
        OSError: if its `config.json` is damaged.
    """
    try:
        path = find_file(checkpoint, "config.json", {})
    except (OSError, ValueError):  # not found; loading reports it
        return None
    found = None if path is None else read_json(path).get("model_type")
    model = next((model for config, model in REGISTERED.items() if config.model_type == found), None)
    return None if model is None else method_of(model).key


def load_detector(
    method: str | None = None,
    *,
    clip: CLIPModel | str | os.PathLike | None = None,
    tokenizer: Any = None,
    checkpoint: str | os.PathLike | None = None,
    backbone: CLIPModel | str | os.PathLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "float32",
    name: str | None = None,
    class_name: str | Mapping[str, str] | None = None,
) -> BaselineDetector:
    """
    Load a baseline, from its checkpoint or on a CLIP backbone.

    Args:
        method (`str`, *optional*): name of the method, one of `METHODS`. By default, that of the checkpoint.
        clip (`CLIPModel`, `str` or `os.PathLike`, *optional*): backbone of a method without training: a model, folder,
            Hub id or `"bundled"`.
        tokenizer (*optional*): text tokenizer of a `clip` that is a model.
        checkpoint (`str` or `os.PathLike`, *optional*): folder or Hub id.
        backbone (`CLIPModel`, `str` or `os.PathLike`, *optional*): backbone of an adapters-only checkpoint.
        device (`torch.device` or `str`, *optional*): device. By default, the CPU.
        dtype (`torch.dtype` or `str`, defaults to `"float32"`): dtype of the backbone.
        name (`str`, *optional*): name in tables. By default, that of the method.
        class_name (`str` or `Mapping[str, str]`, *optional*): see [`BaselineDetector`].

    Returns:
        [`BaselineDetector`]: the detector, with the references of the checkpoint.

    Raises:
        OSError: if the checkpoint or backbone is not found.
        RuntimeError: if weights are missing.
        ValueError: if the method is unknown, the checkpoint belongs to another one, not exactly one of `clip` and
            `checkpoint` is set, or a method that needs training has no checkpoint.
    """
    dtype = check_dtype(dtype)
    if checkpoint is not None:
        method = check_method(method, checkpoint)
        if clip is not None:
            raise ValueError(
                "clip and checkpoint are both set; expected one of them. For the backbone of an adapters-only "
                "checkpoint, use backbone (--backbone)."
            )
        model = find_method(method).model_class.from_pretrained(checkpoint, dtype=dtype, backbone=backbone)
        image_processor = load_processor(checkpoint, model.config.side)
    else:
        found = find_method(str(method))
        if found.trained:
            raise ValueError(f"{found.name} needs training; expected a checkpoint (--model).")
        if clip is None:
            raise ValueError(
                f"{found.name} has no backbone; expected a CLIP model (--clip): a folder, a Hub id or {BUNDLED!r}, or "
                "a checkpoint (--model)."
            )
        model = create_model(found.key, clip, tokenizer, dtype=dtype)
        image_processor = ViP2ClipImageProcessor(size=model.config.side)
    place_model(model, "cpu" if device is None else device)
    return BaselineDetector(model, image_processor, name=name, class_name=class_name, references=model.references)


def check_method(method: str | None, checkpoint: str | os.PathLike) -> str:
    """
    Check that a checkpoint belongs to a method.

    Args:
        method (`str`, *optional*): one of `METHODS`. By default, that of the checkpoint.
        checkpoint (`str` or `os.PathLike`): folder or Hub id.

    Returns:
        `str`: the method.

    Raises:
        OSError: if the checkpoint is not found.
        ValueError: if the checkpoint belongs to another method.
    """
    wanted = None if method is None else find_method(method)
    found = method_of_checkpoint(checkpoint)
    if found is None and wanted is not None and not _exists(checkpoint):
        raise OSError(f"Checkpoint {str(checkpoint)!r} is not found; expected a folder or Hub id with config.json.")
    if found is None or (wanted is not None and found != wanted.key):
        belongs = "another model" if found is None else METHODS[found].name
        expected = "one of the other methods" if wanted is None else wanted.name
        raise ValueError(f"Checkpoint {str(checkpoint)!r} belongs to {belongs}; expected a checkpoint of {expected}.")
    return found


def _exists(checkpoint: str | os.PathLike) -> bool:
    try:
        return find_file(checkpoint, "config.json", {}) is not None
    except (OSError, ValueError):
        return False


def load_processor(checkpoint: str | os.PathLike, image_size: int) -> ViP2ClipImageProcessor:
    """
    Load the image processor of a checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): folder or Hub id.
        image_size (`int`): side of the images that the model expects.

    Returns:
        [`ViP2ClipImageProcessor`]: the image processor. If the checkpoint has none, the default of this size.

    Raises:
        OSError: if its file is damaged.
        ValueError: if it does not match the model.
    """
    if find_file(checkpoint, PROCESSOR_FILE, {}) is None:
        return ViP2ClipImageProcessor(size=image_size)
    image_processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
    check_image_processor(image_processor, image_size)
    return image_processor


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
        raise ValueError(f"{found.name} does not use references; remove --references and --reference-folder.")
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


__all__ = [
    "check_method",
    "evaluate_method",
    "load_detector",
    "load_processor",
    "method_of_checkpoint",
    "title_of",
]
