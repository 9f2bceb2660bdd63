"""Checks of the arguments of the image processor."""

import operator
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.utils.generic import TensorType

from .arguments_vip2clip import READING_ARGUMENTS, as_integer, is_finite


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; expected True or False.")
    return bool(value)


def _size(name: str, value: Any) -> int | dict[str, int]:
    found: Any = dict(value) if isinstance(value, (dict, SizeDict)) else value
    sides: dict[Any, Any] = {"height": found, "width": found}
    if isinstance(found, dict):
        sides = found
    elif isinstance(found, (tuple, list)) and len(found) == 2:
        sides = dict(zip(("height", "width"), found))
    try:
        if set(sides) != {"height", "width"}:
            raise ValueError
        sides = {key: as_integer(key, side, least=1) for key, side in sides.items()}
    except ValueError as error:
        raise ValueError(
            f"{name} is {found!r}; expected height and width as positive integers, or the side of a square."
        ) from error
    return sides if isinstance(found, (dict, tuple, list)) else sides["height"]


def _resample(name: str, value: Any) -> PILImageResampling:
    try:
        return PILImageResampling(as_integer(name, value))
    except ValueError as error:
        raise ValueError(
            f"{name} is {value!r}; expected a PIL.Image.Resampling or its number, 0 to 5, such as 3 for bicubic."
        ) from error


def _number(name: str, value: Any) -> int | float:
    if not is_finite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number.")
    return operator.index(value) if isinstance(value, Integral) else float(value)


def _positive(name: str, value: Any) -> float:
    if not is_finite(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}; expected a finite number greater than 0.")
    return float(value)


def _per_channel(name: str, value: Any) -> float | list[float]:
    check: Callable[[str, Any], float] = _positive if name == "image_std" else _number
    if not isinstance(value, (tuple, list, np.ndarray)):
        return float(check(name, value))
    try:
        if len(value) == 0:
            raise ValueError
        return [float(check(name, one)) for one in value]
    except (TypeError, ValueError) as error:
        above = " greater than 0" if name == "image_std" else ""
        raise ValueError(f"{name} is {value!r}; expected a finite number{above} for each channel.") from error


def _input_data_format(name: str, value: Any) -> ChannelDimension:
    if value not in ("channels_first", "channels_last"):
        raise ValueError(f"{name} is {value!r}; expected 'channels_first' or 'channels_last'.")
    return ChannelDimension(value)


def _data_format(name: str, value: Any) -> ChannelDimension:
    if value != "channels_first":
        raise ValueError(f"{name} is {value!r}; expected 'channels_first', the format of the model.")
    return ChannelDimension.FIRST


def _return_tensors(name: str, value: Any) -> TensorType:
    if value not in ("pt", "np", "mlx"):
        raise ValueError(f"{name} is {value!r}; expected 'pt' or 'np'.")
    return TensorType(value)


def _device(name: str, value: Any) -> str:
    if str(value) != "cpu":
        raise ValueError(
            f"{name} is {str(value)!r}; expected 'cpu', where this image processor runs. To move the result, call its "
            "method to()."
        )
    return "cpu"


# Supported arguments. default_to_square, disable_grouping, data_format and device have no effect: they only allow
# values that need none.
PROCESSOR_ARGUMENTS: dict[str, Callable[[str, Any], Any]] = {
    "do_convert_rgb": _flag,
    "do_resize": _flag,
    "size": _size,
    "default_to_square": _flag,
    "resample": _resample,
    "do_rescale": _flag,
    "rescale_factor": _positive,
    "do_normalize": _flag,
    "image_mean": _per_channel,
    "image_std": _per_channel,
    **READING_ARGUMENTS,
    "input_data_format": _input_data_format,
    "return_tensors": _return_tensors,
    "data_format": _data_format,
    "device": _device,
    "disable_grouping": _flag,
}


__all__ = ["PROCESSOR_ARGUMENTS"]
