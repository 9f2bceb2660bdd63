"""Read and check single values of a plan. Each function raises `ValueError` with the name of the value."""

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..baselines.methods import METHODS


def check_keys(place: str, found: Iterable[Any], allowed: Sequence[str]) -> None:
    """Refuse unknown keys, with the nearest one."""
    for key in found:
        if key not in allowed:
            nearest = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; expected {', '.join(allowed)}."
            raise ValueError(f"{place[0].upper()}{place[1:]} contains the unknown key {key!r}{hint}")


def check_types(place: str, values: Mapping[str, Any], arguments: type) -> None:
    """Refuse text for numbers and switches. In YAML, `1e-3` is text; `1.0e-3` is a number."""
    defaults = {one.name: one.default for one in dataclasses.fields(arguments)}
    for name, value in values.items():
        default = defaults[name]
        if isinstance(default, bool):
            valid, expected = isinstance(value, bool), "true or false"
        elif isinstance(default, (int, float)):
            valid = isinstance(value, (int, float)) and not isinstance(value, bool)
            expected = "a number, such as 1.0e-3" if isinstance(default, float) else "a number"
        else:
            continue
        if not valid:
            raise ValueError(f"{place}.{name} is {value!r}; expected {expected}.")


def check_names(names: Iterable[str]) -> None:
    """Names of datasets are parts of file names, on every system."""
    seen: dict[str, str] = {}
    for name in names:
        bad = sorted({one for one in name if one in '<>:"/\\|?*=' or not one.isprintable()})
        if bad or not name or name.strip(" .") != name:
            raise ValueError(
                f"A dataset is named {name!r}; expected a name that can be part of a file name, without "
                '< > : " / \\ | ? * = and without a space or dot at its ends.'
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ValueError(f"Datasets are named {other!r} and {name!r}; expected names that differ without case.")


def read_root(name: str, root: Any) -> str:
    """Read the folder of a dataset. `~` is the home folder."""
    if not isinstance(root, str) or not root.strip():
        raise ValueError(f"datasets.{name} is {root!r}; expected a folder or 'generated: CATEGORIES'.")
    return os.path.expanduser(root)


def read_methods(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the settings of the other methods."""
    check_keys("methods", found, list(METHODS))
    read = {}
    for key, one in found.items():
        one = {} if one is None else one
        if not isinstance(one, dict):
            raise ValueError(f"methods.{key} is {one!r}; expected model and training.")
        parts = ("model", "training") if METHODS[key].trained else ("model",)
        check_keys(f"methods.{key}", one, parts)
        for part in parts:
            if not isinstance(one.get(part, {}), dict):
                raise ValueError(f"methods.{key}.{part} is {one[part]!r}; expected settings by name.")
        read[key] = {part: one.get(part, {}) for part in parts}
    return read


def read_row_names(table: str, names: Any) -> tuple[str, ...]:
    """Read the settings of a table."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(one, str) for one in names):
        raise ValueError(f"rows.{table} is {names!r}; expected a list of settings.")
    return tuple(names)


def read_numbers(key: str, values: Any, least: int, most: float = math.inf) -> tuple[int, ...]:
    """Read a list of different integers."""
    valid = isinstance(values, (list, tuple)) and len(values) > 0
    valid = valid and all(isinstance(one, int) and not isinstance(one, bool) and one >= least for one in values)
    if not valid or len(set(values)) < len(values) or max(values) > most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{key} is {values!r}; expected different integers of at least {least}{limit}.")
    return tuple(values)


def read_words(values: Any) -> tuple[tuple[str, str], ...]:
    """Read pairs of state words."""
    pairs = []
    for pair in values if isinstance(values, (list, tuple)) else [values]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(map(_is_word, pair)) or pair[0] == pair[1]:
            raise ValueError(
                f"state_words contains {pair!r}; expected pairs of a normal and an anomalous word, without / and =."
            )
        pairs.append((pair[0], pair[1]))
    if not pairs or len(set(pairs)) < len(pairs):
        raise ValueError(f"state_words is {values!r}; expected different pairs, at least one.")
    return tuple(pairs)


def _is_word(word: Any) -> bool:
    return isinstance(word, str) and bool(word.strip()) and not set("/=") & set(word)  # names of settings contain them


__all__ = [
    "check_keys",
    "check_names",
    "check_types",
    "read_methods",
    "read_numbers",
    "read_root",
    "read_row_names",
    "read_words",
]
