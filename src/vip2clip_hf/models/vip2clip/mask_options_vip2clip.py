"""How masks are read: threshold, channel, inversion, orientation and regions smaller than a pixel of the model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arguments_vip2clip import is_finite


MASK_CHANNELS = ("auto", "luminance", "any", "red", "green", "blue", "alpha", "index")
MASK_ORIENTATIONS = ("auto", "image", "own")


@dataclass(frozen=True)
class MaskOptions:
    """
    Options of reading masks. The same options apply in training, evaluation, calibration and checks of the data.

    `None` means that another place decides: for a dataset its benchmark, otherwise the image processor.

    Args:
        threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous, at least 0. Use 127 for masks with lossy compression (JPEG).
        channel (`str`, *optional*):
            Where the values of a mask come from:

            - `"auto"`: the index of a palette, alpha where colours carry no information, otherwise the largest value
              of the colour channels. Ambiguous masks are refused. docs/odd-data.md lists the rules.
            - `"luminance"`: the gray value of colours and palettes, without alpha.
            - `"any"`: the largest value of the colour channels, without alpha.
            - `"red"`, `"green"`, `"blue"` or `"alpha"`: this channel.
            - `"index"`: the index of a palette. 0 is background, every other index is anomalous.
        invert (`bool`, *optional*):
            Whether the defect is dark on a bright background: all pixels that would be normal become anomalous, and
            the reverse.
        orientation (`str`, *optional*):
            EXIF orientation of a mask file without an orientation of its own:

            - `"auto"`: rotated like its image if it has the size of the stored pixels of the image.
            - `"image"`: the same, without a warning if the mask could also belong to the upright image.
            - `"own"`: never rotated.
        keep_small_regions (`bool`, *optional*):
            Whether a region that vanishes at the size of the model is kept there, with at least one pixel. The
            authors' code loses such regions.

    Raises:
        ValueError: if a value is not allowed.
    """

    threshold: int | float | None = None
    channel: str | None = None
    invert: bool | None = None
    orientation: str | None = None
    keep_small_regions: bool | None = None

    def __post_init__(self) -> None:
        for name, value in self._given().items():
            check_mask_option(MASK_OPTIONS[name], value)

    def _given(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, default: "MaskOptions") -> "MaskOptions":
        """
        Fill the options that are not set.

        Args:
            default ([`MaskOptions`]): options to use where these are `None`.

        Returns:
            [`MaskOptions`]: the combined options.
        """
        return dataclasses.replace(default, **self._given())

    @classmethod
    def of(cls, image_processor: Any) -> "MaskOptions":
        """
        Options of an image processor.

        Args:
            image_processor ([`ViP2ClipImageProcessor`]): the image processor.

        Returns:
            [`MaskOptions`]: the options, all set.
        """
        return cls.named({argument: getattr(image_processor, argument, None) for argument in MASK_OPTIONS.values()})

    @classmethod
    def named(cls, values: Mapping[str, Any]) -> "MaskOptions":
        """
        Options from the arguments of an image processor, or from the columns of a dataset with the same names.

        Args:
            values (`Mapping[str, Any]`): values by name, such as `{"mask_threshold": 127}`. Other names are ignored.

        Returns:
            [`MaskOptions`]: the options.
        """
        return cls(**{name: values.get(argument) for name, argument in MASK_OPTIONS.items()})

    def columns(self) -> dict[str, Any]:
        """Return the options by the names of [`MaskOptions.named`]."""
        return {argument: getattr(self, name) for name, argument in MASK_OPTIONS.items()}


# Name of each option as an argument of the image processor and as a column of a dataset.
MASK_OPTIONS = {name: f"mask_{name}" for name in ("threshold", "channel", "invert", "orientation")}
MASK_OPTIONS["keep_small_regions"] = "keep_small_regions"


def check_mask_option(name: str, value: Any) -> Any:
    """
    Check an option of reading masks.

    Args:
        name (`str`): name of the argument of the image processor, such as `"mask_threshold"`.
        value: value of the option, not `None`.

    Returns:
        The value.

    Raises:
        ValueError: if the value is not allowed.
    """
    if name == "mask_threshold":
        if not is_finite(value):
            raise ValueError(f"{name} is {value!r}; expected a finite number.")
        if value < 0:
            raise ValueError(f"{name} is {value!r}; expected a number of at least 0, because 0 is background.")
        return value if isinstance(value, (int, float)) else value.item()
    if name in ("mask_invert", "keep_small_regions"):
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} is {value!r}; expected True or False.")
        return bool(value)
    allowed = MASK_CHANNELS if name == "mask_channel" else MASK_ORIENTATIONS
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected {', '.join(allowed)}.")
    return value


# Set by an image processor if nothing else is.
DEFAULT_MASK_OPTIONS = MaskOptions(0, "auto", False, "auto", True)

__all__ = ["DEFAULT_MASK_OPTIONS", "MASK_CHANNELS", "MASK_OPTIONS", "MASK_ORIENTATIONS", "MaskOptions"]
