"""Checks of the arguments of the pipeline, and of reading images."""

import math
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any


LABELS = ("normal", "anomalous")


def threshold_pair(threshold: Any, defaults: tuple[float, float]) -> tuple[float, float]:
    """
    Return the thresholds of images and pixels.

    Args:
        threshold (`float`, `tuple[float | None, float | None]`, *optional*): one threshold for both, or a pair.
        defaults (`tuple[float, float]`): thresholds in place of `None`.

    Returns:
        `tuple[float, float]`: image and pixel threshold.

    Raises:
        ValueError: if a threshold is not a number in [0, 1].
    """
    pair: tuple[Any, ...] = tuple(threshold) if isinstance(threshold, (tuple, list)) else (threshold, threshold)
    values = [default if value is None else value for value, default in zip(pair, defaults)]
    if len(pair) != 2 or not all(is_finite(value) and 0 <= value <= 1 for value in values):
        raise ValueError(f"threshold is {threshold!r}; expected a number in [0, 1] or a pair of them.")
    return float(values[0]), float(values[1])


def label_names(id2label: Mapping[Any, str] | None) -> tuple[str, str]:
    """
    Return the names of normal and anomalous images.

    Args:
        id2label (`Mapping[int, str]`, *optional*): names by id: 0 is normal, 1 anomalous.

    Returns:
        `tuple[str, str]`: name of normal and of anomalous images.

    Raises:
        ValueError: if there are no names for 0 and 1.
    """
    if id2label is None:
        return LABELS
    if set(id2label) != {0, 1}:
        raise ValueError(f"id2label is {id2label!r}; expected names for 0 (normal) and 1 (anomalous).")
    return id2label[0], id2label[1]


def is_finite(value: Any) -> bool:
    """
    Return whether a value is a finite number, also of NumPy. Booleans are not numbers.

    Args:
        value: the value.

    Returns:
        `bool`: whether it is a number and neither NaN nor infinite.
    """
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def as_integer(name: str, value: Any, least: int | None = None) -> int:
    """
    Convert an integer, also of NumPy, to `int`.

    Args:
        name (`str`): name of the argument, for the error.
        value: the value.
        least (`int`, *optional*): smallest allowed value.

    Returns:
        `int`: the value.

    Raises:
        ValueError: if the value is not an integer, a boolean or too small.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
        if least is not None and number < least:
            raise TypeError
    except TypeError as error:
        at_least = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} is {value!r}; expected an integer{at_least}.") from error
    return number


def as_timeout(value: Any) -> float | None:
    """
    Convert a timeout to `float`.

    Args:
        value: the value in seconds. `None` means no limit.

    Returns:
        `float` or `None`: the value.

    Raises:
        ValueError: if the value is not a number greater than 0, or `None`.
    """
    if value is None:
        return None
    if not is_finite(value) or value <= 0:
        raise ValueError(f"timeout is {value!r}; expected a number of seconds greater than 0, or None for no limit.")
    return float(value)


def check_tiling(tile_size: Any, tile_overlap: Any) -> tuple[int, float]:
    """
    Check the settings of the tiles.

    Args:
        tile_size (`int`): side of a tile in pixels.
        tile_overlap (`float`): fraction of the side that adjacent tiles share.

    Returns:
        `tuple[int, float]`: side and overlap.

    Raises:
        ValueError: if the side is not an integer of at least 16, or the overlap is outside [0, 0.9].
    """
    try:
        side = as_integer("tile_size", tile_size, least=16)
    except ValueError as error:
        raise ValueError(
            f"tile_size is {tile_size!r}; expected an integer of at least 16 pixels, or 0 for no tiles."
        ) from error
    if not is_finite(tile_overlap) or not 0 <= tile_overlap <= 0.9:
        raise ValueError(f"tile_overlap is {tile_overlap!r}; expected a fraction of the tile in [0, 0.9].")
    return side, float(tile_overlap)


# Arguments of reading


def reading_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check the arguments that say how to read images, see [`load_image`].

    Args:
        arguments (`Mapping[str, Any]`): `bit_depth`, `page` and `channel_order`, none of them `None`.

    Returns:
        `dict[str, Any]`: the arguments with Python's types.

    Raises:
        ValueError: if an argument is out of range.
    """
    return {name: READING_ARGUMENTS[name](name, value) for name, value in arguments.items()}


def _bit_depth(name: str, value: Any) -> int:
    try:
        bits = as_integer(name, value, least=8)
        if bits > 16:
            raise ValueError
    except ValueError as error:
        raise ValueError(f"{name} is {value!r}; expected an integer from 8 to 16.") from error
    return bits


def _page(name: str, value: Any) -> int:
    return as_integer(name, value, least=1)


def _channel_order(name: str, value: Any) -> str:
    if value not in ("rgb", "bgr"):
        raise ValueError(f"{name} is {value!r}; expected 'rgb' or 'bgr'.")
    return str(value)


READING_ARGUMENTS: dict[str, Callable[[str, Any], Any]] = {
    "bit_depth": _bit_depth,
    "page": _page,
    "channel_order": _channel_order,
}


# Arguments of the pipeline


def loading_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check `batch_size` and `num_workers`, which the base class of the pipeline passes to a data loader of torch.

    Args:
        arguments (`Mapping[str, Any]`): the arguments of the pipeline or of a call.

    Returns:
        `dict[str, Any]`: all arguments, these two as `int`.

    Raises:
        ValueError: if one of the two is not an integer, or out of range.
    """
    least = {"batch_size": 1, "num_workers": 0}
    given = {name: arguments[name] for name in least if arguments.get(name) is not None}
    return {**arguments, **{name: as_integer(name, value, least[name]) for name, value in given.items()}}


def call_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check the arguments of a call of the pipeline, other than those in [`loading_arguments`].

    Args:
        arguments (`Mapping[str, Any]`): the arguments of a call.

    Returns:
        `dict[str, Any]`: the arguments with Python's types, without those that are `None` and stand for the default.
        `timeout` can be `None`, which means no limit, and `references`, which means none.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if an argument is out of range.
    """
    names = ("heatmap", "references", "regions", "threshold", "tile_overlap", "tile_size", "timeout", "top_k")
    known = (*names, *READING_ARGUMENTS)
    if unknown := sorted(set(arguments) - set(known)):
        expected = ", ".join(sorted((*known, "batch_size", "num_workers")))
        raise TypeError(f"Unknown arguments {', '.join(unknown)}; expected {expected}.")
    checked = {name: value for name, value in arguments.items() if value is not None}
    if "references" in arguments:  # the pipeline checks them
        checked["references"] = arguments["references"]
    if "timeout" in arguments:
        checked["timeout"] = as_timeout(arguments["timeout"])
    checked.update(reading_arguments({name: checked[name] for name in READING_ARGUMENTS if name in checked}))
    if "top_k" in checked:
        checked["top_k"] = as_integer("top_k", checked["top_k"])
    if "tile_overlap" in checked:
        _, checked["tile_overlap"] = check_tiling(16, checked["tile_overlap"])
    if "tile_size" in checked:
        checked["tile_size"] = as_integer("tile_size", checked["tile_size"])
        if checked["tile_size"] != 0:
            check_tiling(checked["tile_size"], 0.0)
    if "threshold" in checked:
        threshold_pair(checked["threshold"], (0.5, 0.5))  # None stays: the configuration can change before a call
    return checked


__all__ = [
    "LABELS",
    "READING_ARGUMENTS",
    "as_integer",
    "call_arguments",
    "check_tiling",
    "is_finite",
    "label_names",
    "loading_arguments",
    "reading_arguments",
    "threshold_pair",
]
