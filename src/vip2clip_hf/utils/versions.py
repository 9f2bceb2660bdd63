"""Versions of packages, recorded with results."""

import importlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from .._version import __version__


# Raise it with each change of the code that changes scores or maps of the same inputs.
SCORING_VERSION = 1


def versions(*packages: str) -> dict[str, str]:
    """
    Get the versions of this package, Python and other packages.

    Args:
        packages (`str`): names of installed packages. Defaults to torch and transformers.

    Returns:
        `dict[str, str]`: version by name.
    """
    found = {name: str(importlib.import_module(name).__version__) for name in packages or ("torch", "transformers")}
    return {"vip2clip_hf": __version__, **found, "python": platform.python_version()}


def merge_versions(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Merge the versions of several runs.

    Args:
        found (`Sequence[Mapping[str, Any]]`): versions of each run, at least one.

    Returns:
        `dict[str, Any]`: version by package. If runs differ, a list of their versions.
    """
    merged = {}
    for name in found[0]:
        values: list[Any] = []
        for one in found:
            value = one.get(name)
            values += [each for each in (value if isinstance(value, list) else [value]) if each not in values]
        merged[name] = values[0] if len(values) == 1 else values
    return merged


__all__ = ["SCORING_VERSION", "merge_versions", "versions"]
