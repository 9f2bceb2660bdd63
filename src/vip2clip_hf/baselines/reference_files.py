"""The file of the references of a baseline in a checkpoint."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..models.vip2clip.backbone_vip2clip import backbone_checksum
from ..models.vip2clip.checkpoint_files_vip2clip import find_file, write_bytes
from ..models.vip2clip.reference_files_vip2clip import FEATURES_NAME, checksum_of
from .references import from_tensors, map_tensors, tensors_of


# Raise it if embeddings change.
VERSION = 1


def describe_model(model: Any) -> dict[str, Any]:
    """
    Describe what determines the references of a model, as JSON types. Reading all weights takes about a second per
    gigabyte.

    Args:
        model ([`BaselineModel`]): the model.

    Returns:
        `dict[str, Any]`: model type, settings and a checksum of the backbone in its dtype.
    """
    config = model.config
    vision = {
        k: v for k, v in config.clip.vision_config.to_dict().items() if k not in ("dtype", "transformers_version")
    }
    names = ("image_size", "position_interpolation", *model.reference_fields)
    content = {
        "model_type": config.model_type,
        "vision_config": vision,
        **{name: getattr(config, name) for name in names},
        "dtype": str(model.clip.dtype).removeprefix("torch."),
        "backbone": backbone_checksum(model.clip.state_dict(), model.clip.dtype),
    }
    return json.loads(json.dumps(content, sort_keys=True, default=str))


def write_references(folder: str | os.PathLike, model: Any) -> None:
    """
    Write the references of a model to a checkpoint, or remove those of an earlier model.

    Args:
        folder (`str` or `os.PathLike`): checkpoint folder. It is created if it does not exist.
        model ([`BaselineModel`]): the model.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(folder, FEATURES_NAME)
    if model.references is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: one.detach().cpu().contiguous() for name, one in tensors_of(model.references).items()}
    description = {"version": VERSION, "model": describe_model(model)}
    metadata = {
        "format": "pt",
        "version": str(VERSION),
        "description": json.dumps(description, sort_keys=True),
        "checksum": checksum_of(description, tensors),
    }
    write_bytes(path, save(tensors, metadata))


def read_references(checkpoint: str | os.PathLike, model: Any, hub_kwargs: Mapping[str, Any]) -> Any:
    """
    Read the references of a checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): folder, one of its files, or Hub id.
        model ([`BaselineModel`]): the model of the checkpoint.
        hub_kwargs (`Mapping[str, Any]`): options to load from the Hub.

    Returns:
        [`References`], *optional*: the references on the device of the model, or `None` if there are none.

    Raises:
        OSError: if the file is damaged.
        ValueError: if the references belong to another model.
    """
    source = os.fspath(checkpoint)
    source = os.path.dirname(source) if os.path.isfile(source) else source
    path = find_file(source, FEATURES_NAME, hub_kwargs)
    if path is None:
        return None
    if model.references_class is None:
        raise ValueError(f"{path} contains references, but {type(model).__name__} does not use references; remove it.")
    again = "Encode the references again, with encode_images."
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        version, description = metadata["version"], json.loads(metadata["description"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise OSError(f"{path} is not a valid file of references: {error}. {again}") from error
    if version != str(VERSION):
        raise OSError(f"{path} has version {version!r}; expected '{VERSION}'. {again}")
    if checksum_of(description, tensors) != metadata.get("checksum"):
        raise OSError(f"{path} is damaged: its checksum is another one. {again}")
    _check_model(path, description["model"], describe_model(model))
    try:
        references = from_tensors(model.references_class, tensors)
        if not len(references):
            raise ValueError("there are 0 photos")
    except (TypeError, ValueError) as error:
        raise OSError(f"The references in {path} are not valid: {error}. {again}") from error
    return map_tensors(references, lambda one: one.to(model.device))


def _check_model(path: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare what determines references. Another dtype changes the checksum of the backbone."""
    skipped = {"dtype"} if expected.get("dtype") == found["dtype"] else {"dtype", "backbone"}
    differ = [name for name in found if name not in skipped and found[name] != expected.get(name)]
    if differ:
        raise ValueError(
            f"{path} belongs to another model: {', '.join(differ)} differ. Encode the references again, with "
            "encode_images."
        )


__all__ = ["describe_model", "read_references", "write_references"]
