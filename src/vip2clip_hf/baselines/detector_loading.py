"""Load a baseline as a detector, from a checkpoint or on a CLIP backbone."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPModel

from ..checkpoints.bundled import BUNDLED
from ..models.loading import check_dtype, place_model
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
            `checkpoint` is set, `backbone` is set without a checkpoint, or a method that needs training has no
            checkpoint.
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
        if backbone is not None:
            raise ValueError(
                "backbone (--backbone) is set without a checkpoint; expected clip (--clip) as the backbone of a "
                "method without training."
            )
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


__all__ = ["check_method", "load_detector", "load_processor", "method_of_checkpoint"]
