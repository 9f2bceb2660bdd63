"""Store which names the models of transformers define. Reading them from its files takes long on each start."""

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from typing import Any

from .cache import own_cache
from .files import write_atomically


class ImportStructure:
    """
    Reads which names the models of transformers define, which takes a long time, once per release of transformers.

    Args:
        read (`Callable`): function of transformers that reads them.
    """

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read
        self._found: dict[str, list] = {}

    def __call__(self, module_path: Any) -> Any:
        folder = os.path.dirname(module_path) if os.path.isfile(module_path) else os.fspath(module_path)
        if os.path.basename(folder) != "models":
            return self._read(module_path)
        if folder not in self._found:
            self._found[folder] = self._stored(folder)
        return _decoded(self._found[folder])

    def _stored(self, folder: str) -> list:
        version = importlib.metadata.version("transformers")
        file = own_cache() / f"transformers-{version}.json"
        key = [version, folder, os.stat(folder).st_mtime_ns]
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(file.read_bytes())
            if content["key"] == key and _encoded(_decoded(content["structure"])) == content["structure"]:
                return content["structure"]
        found = _encoded(self._read(folder))
        if "dev" not in version:  # an editable copy can change
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps({"key": key, "structure": found}))
        return found


def _encoded(value: Any) -> list:
    """Encode nested dicts with names or sets of names as keys, and sets of names as values, for JSON."""
    if isinstance(value, dict):
        return [[key if isinstance(key, str) else sorted(key), _encoded(one)] for key, one in value.items()]
    return ["", *sorted(value)]


def _decoded(value: list) -> Any:
    if value[:1] == [""]:
        return set(value[1:])
    return {key if isinstance(key, str) else frozenset(key): _decoded(one) for key, one in value}


__all__ = ["ImportStructure"]
