"""Files of a bank of references: `references.json` and `references.safetensors`."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .checkpoint_files_vip2clip import find_file, read_json, write_bytes, write_fields
from .reference_records_vip2clip import ReferenceOptions, ReferencePhoto


REFERENCES_NAME, FEATURES_NAME = "references.json", "references.safetensors"
# Raise it if features, distances or scores change.
VERSION = 1


def checksum_of(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """
    Compute a checksum of both files.

    Args:
        description (`Mapping[str, Any]`): content of `references.json`, without the checksum.
        tensors (`Mapping[str, torch.Tensor]`): content of `references.safetensors`.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def write_references(
    folder: str | os.PathLike, description: Mapping[str, Any], checksum: str, tensors: dict[str, torch.Tensor]
) -> None:
    """
    Write both files under temporary names, then rename them one after the other.

    `references.json` contains the checksum of both, so an interruption between both names is noticed.

    Args:
        folder (`str` or `os.PathLike`): folder to write to. It is created if it does not exist.
        description (`Mapping[str, Any]`): content of `references.json`.
        checksum (`str`): checksum of both.
        tensors (`dict[str, torch.Tensor]`): content of `references.safetensors`.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}.new" for name in (FEATURES_NAME, REFERENCES_NAME)}
    try:
        write_bytes(temporary[FEATURES_NAME], save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        write_fields(temporary[REFERENCES_NAME], {**description, "checksum": checksum})
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def remove_references(folder: str | os.PathLike) -> None:
    """
    Remove both files of references that were replaced by a model without.

    Args:
        folder (`str` or `os.PathLike`): checkpoint folder.
    """
    for name in (REFERENCES_NAME, FEATURES_NAME):
        Path(folder, name).unlink(missing_ok=True)


def read_references(cls: Any, checkpoint: str | os.PathLike, hub_kwargs: Mapping[str, Any]) -> Any:
    """
    Read both files of a checkpoint.

    Args:
        cls (`type`): [`ReferenceBank`].
        checkpoint (`str` or `os.PathLike`): folder, one of its files, or Hub id.
        hub_kwargs (`Mapping[str, Any]`): options to load from the Hub.

    Returns:
        [`ReferenceBank`], *optional*: the bank, or `None` if the checkpoint has no references.

    Raises:
        OSError: if a file is missing or damaged, or the files do not belong together.
    """
    source = os.fspath(checkpoint)
    source = os.path.dirname(source) if os.path.isfile(source) else source
    path = find_file(source, REFERENCES_NAME, hub_kwargs)
    if path is None:
        return None
    content, tensors = read_json(path), find_file(source, FEATURES_NAME, hub_kwargs)
    if tensors is None:
        raise OSError(f"{path} belongs to {FEATURES_NAME}, which is missing from the same folder.")
    if content.get("version") != VERSION:
        raise OSError(
            f"{path} has version {content.get('version')!r}; expected {VERSION}. Build the references again."
        )
    description = {name: value for name, value in content.items() if name != "checksum"}
    try:
        loaded = load(Path(tensors).read_bytes())
    except SafetensorError as error:
        raise OSError(f"{tensors} is not a valid safetensors file: {error}. Build the references again.") from error
    # Before the contents are used: they may be damaged in any way.
    if checksum_of(description, loaded) != content.get("checksum"):
        raise OSError(
            f"{tensors} does not belong to {path}; expected the two files that were written together. Build the "
            "references again."
        )
    try:
        return cls(
            **loaded,
            photos=[ReferencePhoto(**photo) for photo in content["photos"]],
            options=ReferenceOptions(**content["options"]),
            fingerprint=content["fingerprint"],
            reduced=content["reduced"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OSError(f"The references in {path} are not valid: {error}. Build the references again.") from error


__all__ = [
    "FEATURES_NAME",
    "REFERENCES_NAME",
    "VERSION",
    "checksum_of",
    "read_references",
    "remove_references",
    "write_references",
]
