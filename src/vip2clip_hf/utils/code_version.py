"""Version of the code that computes stored values, to notice when it changes."""

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .._version import __version__


_SIMPLE = (bool, int, float, str, bytes, type(None))


def code_version(modules: Iterable[str]) -> str:
    """
    Hash the code and the constants of modules.

    Comments, docstrings and formatting do not matter. Constants are names in upper case with simple values; their
    current values are used, in case a program has changed them.

    Args:
        modules (`Iterable[str]`): names of modules, such as `"vip2clip_hf.training.augmentation"`.

    Returns:
        `str`: SHA-256, as 64 hexadecimal digits.
    """
    found = hashlib.sha256()
    for name in sorted(set(modules)):
        module = sys.modules.get(name) or importlib.import_module(name)
        found.update(f"{name}\n{_source(str(module.__file__))}\n{_constants(module)}\n".encode())
    return found.hexdigest()


@cache
def _source(path: str) -> str:
    """Return the code of a module without comments and docstrings. Without its source, the version of the package."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # only the compiled file is installed
        return __version__
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _constants(module: ModuleType) -> list[tuple[str, Any]]:
    found = {name: value for name, value in vars(module).items() if name.strip("_").isupper() and _is_simple(value)}
    return [(name, _ordered(value)) for name, value in sorted(found.items())]


def _is_simple(value: Any) -> bool:
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_simple, value))
    if isinstance(value, dict):
        return all(_is_simple(key) and _is_simple(one) for key, one in value.items())
    return isinstance(value, _SIMPLE)


def _ordered(value: Any) -> Any:
    """Replace sets, whose order changes between processes."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return [(repr(key), _ordered(one)) for key, one in value.items()]
    return [_ordered(one) for one in value] if isinstance(value, (tuple, list)) else value


__all__ = ["code_version"]
