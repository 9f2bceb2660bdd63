"""Files of a bank of references: `references.json` and `references.safetensors`."""

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


def write_references(
    folder: str | os.PathLike, description: Mapping[str, Any], checksum: str, tensors: dict[str, torch.Tensor]
) -> None:
    """
    Write both files, each under a temporary name first.

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
    write_bytes(folder / FEATURES_NAME, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    write_fields(folder / REFERENCES_NAME, {**description, "checksum": checksum})


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
    try:
        bank = cls(
            **load(Path(tensors).read_bytes()),
            photos=[ReferencePhoto(**photo) for photo in content["photos"]],
            options=ReferenceOptions(**content["options"]),
            fingerprint=content["fingerprint"],
            reduced=content["reduced"],
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise OSError(f"The references in {path} are damaged: {error}") from error
    if bank.checksum() != content.get("checksum"):
        raise OSError(f"{tensors} does not belong to {path}; expected the file that was written with it.")
    return bank


__all__ = [
    "FEATURES_NAME",
    "REFERENCES_NAME",
    "VERSION",
    "read_references",
    "remove_references",
    "write_references",
]
