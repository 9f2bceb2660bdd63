"""References of a baseline: embeddings of photos of good parts, and their file in a checkpoint."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..models.vip2clip.backbone_vip2clip import backbone_checksum
from ..models.vip2clip.checkpoint_files_vip2clip import find_file, write_bytes
from ..models.vip2clip.reference_files_vip2clip import FEATURES_NAME, checksum_of


# Raise it if embeddings change.
VERSION = 1


class References(Protocol):
    """
    Embeddings of photos of good parts, such as [`WinClipReferences`].

    A class of references is a dataclass. Its fields are tensors, dicts of tensors with integers as keys, or tuples of
    tensors. `encode_images` of a model with `references_class` returns one for a batch of images.
    """

    def __len__(self) -> int:
        """Number of photos."""
        ...

    @classmethod
    def join(cls, parts: Any) -> Any:
        """
        Join the embeddings of batches.

        Args:
            parts (`list`): embeddings of at least one batch.

        Returns:
            the embeddings of all photos.
        """
        ...


_References = TypeVar("_References")


def check_references_argument(references: Any) -> None:
    """
    Check the argument `references` of a model.

    Args:
        references: references, `"auto"` for those of the model, or `None`.

    Raises:
        ValueError: if it is another text.
    """
    if isinstance(references, str) and references != "auto":
        raise ValueError(f"references is {references!r}; expected references, 'auto' or None.")


def tensors_of(references: Any) -> dict[str, torch.Tensor]:
    """
    List the tensors of references.

    Args:
        references ([`References`]): the references.

    Returns:
        `dict[str, torch.Tensor]`: tensor by the name of its field, `"field.KEY"` in a dict and `"field[NUMBER]"` in a
        tuple.
    """
    found: dict[str, torch.Tensor] = {}
    for field in fields(references):
        value = getattr(references, field.name)
        if isinstance(value, Mapping):
            found.update({f"{field.name}.{key}": one for key, one in value.items()})
        elif isinstance(value, (list, tuple)):
            found.update({f"{field.name}[{number}]": one for number, one in enumerate(value)})
        else:
            found[field.name] = value
    return found


def from_tensors(cls: type[_References], tensors: Mapping[str, torch.Tensor]) -> _References:
    """
    Create references from the result of `tensors_of`.

    Args:
        cls (`type`): class of the references.
        tensors (`Mapping[str, torch.Tensor]`): the tensors.

    Returns:
        [`References`]: the references.

    Raises:
        TypeError: if a field is missing or unknown.
    """
    values: dict[str, Any] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: _place(item[0])):
        field, key, number = _place(name)
        if key is not None:
            values.setdefault(field, {})[key] = tensor
        elif number is not None:
            values[field] = (*values.get(field, ()), tensor)
        else:
            values[field] = tensor
    return cls(**values)


def _place(name: str) -> tuple[str, int | None, int | None]:
    """Field, key of a dict, and position in a tuple."""
    found = re.fullmatch(r"(\w+)(?:\.(\d+)|\[(\d+)\])?", name)
    if found is None:
        raise TypeError(f"the tensor {name!r} is not known")
    field, key, number = found.groups()
    return field, None if key is None else int(key), None if number is None else int(number)


def map_tensors(references: _References, function: Callable[[torch.Tensor], torch.Tensor]) -> _References:
    """
    Apply a function to all tensors of references.

    Args:
        references ([`References`]): the references.
        function (`Callable`): takes and returns a tensor.

    Returns:
        [`References`]: new references.
    """
    return from_tensors(type(references), {name: function(one) for name, one in tensors_of(references).items()})


def references_digest(references: Any) -> str:
    """
    Identify references.

    Args:
        references ([`References`]): the references.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    return checksum_of({"class": type(references).__name__}, tensors_of(references))


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


__all__ = [
    "References",
    "check_references_argument",
    "from_tensors",
    "map_tensors",
    "read_references",
    "references_digest",
    "tensors_of",
    "write_references",
]
