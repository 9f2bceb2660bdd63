"""JSON files of a checkpoint next to `config.json`: reading, also from the Hub, checking and writing."""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np


_File = TypeVar("_File", bound="CheckpointFile")


class CheckpointFile:
    """
    Base class of dataclasses that are stored in a JSON file of a checkpoint.

    Subclasses set `file_name`, check their fields in `check_values`, and convert the fields that `config.json` of
    version 0.1 contains instead in `from_legacy`.
    """

    file_name: ClassVar[str]

    def check_values(self) -> None:
        """
        Check every value.

        Raises:
            ValueError: if a value is not allowed.
        """

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to a dict that can be saved as JSON.

        Returns:
            `dict[str, Any]`: the fields.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[_File], content: Mapping[str, Any]) -> _File:
        """
        Create from a dict, as returned by `to_dict`.

        Args:
            content (`Mapping[str, Any]`): the fields. Missing fields have their defaults.

        Returns:
            an instance of this class.

        Raises:
            ValueError: if a field is unknown, or a value is not allowed.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for name in content:
            if name not in known:
                raise ValueError(f"{name!r} is not a field of {cls.__name__}; expected {', '.join(known)}.")
        return cls(**content)

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Convert the fields that `config.json` of version 0.1 contains. `None` if it contains none of them."""
        return None

    @classmethod
    def from_pretrained(
        cls: type[_File], pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any
    ) -> _File:
        """
        Load the file of a checkpoint. Of a checkpoint of version 0.1, the fields are read from its `config.json`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of the checkpoint, or one of its files.
            hub_kwargs:
                Options to load from the Hub, such as `revision`, `token` and `subfolder`.

        Returns:
            an instance of this class. The defaults if the checkpoint does not contain the file.

        Raises:
            OSError: if the checkpoint is not found or a file is damaged.
            ValueError: if a value is not allowed.
        """
        found = cls.find(pretrained_model_name_or_path, **hub_kwargs)
        return cls() if found is None else found

    @classmethod
    def find(cls: type[_File], pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> _File | None:
        """Load the file of a checkpoint like `from_pretrained`, or return `None` if there is none."""
        source = os.fspath(pretrained_model_name_or_path)
        source = os.path.dirname(source) if os.path.isfile(source) else source
        path = find_file(source, cls.file_name, hub_kwargs)
        if path is None:
            path = find_file(source, "config.json", hub_kwargs)
            if path is None and not os.path.isdir(source) and _is_offline(hub_kwargs):
                raise OSError(f"{source!r} is not in the cache of the Hub; expected a folder or a cached checkpoint.")
            if path is None:
                return None
            content, legacy = read_json(path), True
        else:
            content, legacy = cls._complete(read_json(path), path, source, hub_kwargs), False
        try:
            found = cls.from_legacy(content) if legacy else content
            return None if found is None else cls.from_dict(found)
        except ValueError as error:
            raise ValueError(f"{path} is not valid: {error}") from error

    @classmethod
    def _complete(
        cls, content: dict[str, Any], path: str, source: str, hub_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Add values that are stored in another file."""
        return content

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """
        Write the file. It is written under a temporary name first, so an interruption leaves no partial file.

        Args:
            save_directory (`str` or `os.PathLike`): folder to write to. It is created if it does not exist.

        Raises:
            OSError: if the folder cannot be written.
            ValueError: if a value is not allowed.
        """
        self.check_values()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_fields(folder / self.file_name, self.to_dict())


def write_fields(path: Path, content: Mapping[str, Any]) -> None:
    """Write a dict as JSON. A field has one line, except for a list of dicts: a line per number would be long."""
    lines = []
    for name, value in content.items():
        indent = 2 if isinstance(value, list) and value and isinstance(value[0], Mapping) else None
        text = json.dumps(value, allow_nan=False, indent=indent).replace("\n", "\n  ")
        lines.append(f"  {json.dumps(name)}: {text}")
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_file(source: str | os.PathLike, name: str, hub_kwargs: Mapping[str, Any]) -> str | None:
    """Return the path of a file of a checkpoint, or None if the checkpoint does not contain it."""
    if os.path.isdir(source):  # also where transformers is not installed
        path = os.path.join(source, hub_kwargs.get("subfolder") or "", name)
        return path if os.path.isfile(path) else None
    from transformers.utils.hub import cached_file

    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        # Offline, a file that is not in the cache is missing.
        _raise_exceptions_for_connection_errors=not _is_offline(hub_kwargs),
        **hub_kwargs,
    )


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON file that contains a dict. Raises an `OSError` if it does not."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("expected a dict")
    except ValueError as error:
        raise OSError(f"{path} is not a valid JSON file: {error}") from error
    return content


def read_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """
    Read the float32 arrays of a small safetensors file. Needs NumPy only, because the runtime without torch reads it.

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        `dict[str, np.ndarray]`: the arrays.

    Raises:
        OSError: if the file is damaged, or contains values of another type.
    """
    content = Path(path).read_bytes()
    try:
        (length,) = struct.unpack("<Q", content[:8])
        if length > len(content) - 8:
            raise ValueError("the header ends too early")
        header, values = json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            (start, end), shape = entry["data_offsets"], tuple(entry["shape"])
            if entry["dtype"] != "F32" or not 0 <= start <= end <= len(values) or end - start != 4 * math.prod(shape):
                raise ValueError(f"{name} is not a complete array of float32")
            found[name] = np.frombuffer(values[start:end], dtype="<f4").reshape(shape).astype(np.float32)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise OSError(f"{path} is damaged: {error}") from error


def _is_offline(hub_kwargs: Mapping[str, Any]) -> bool:
    from huggingface_hub import is_offline_mode

    return is_offline_mode() or bool(hub_kwargs.get("local_files_only"))


__all__ = ["CheckpointFile", "find_file", "read_arrays", "read_json", "write_bytes", "write_fields"]
