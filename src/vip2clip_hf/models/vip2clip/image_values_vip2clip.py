"""Convert pixel values of any range to 8 bits: arrays, photos with more than 8 bits per value, and transparency."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .image_notices_vip2clip import notice
from .tensors_vip2clip import is_tensor


# Tolerance for floats outside [0, 1].
ROUNDING = 1e-3
# Values of 16 bits that stay below this could also have 8, 10, 12 or 14 bits.
CERTAINLY_16_BITS = 1 << 14
# Transparent photos are shown on this color.
BACKGROUND = "white"
# Key of `PIL.Image.Image.info` with the `Bits` of a file.
STATED_BITS = "vip2clip_bits"
# Tags of TIFF: bits per value, and largest possible value.
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281


class Bits(NamedTuple):
    """
    What a file states about its values.

    Args:
        bits (`int`, *optional*): bits per value, if they are certain.
        upper_only (`bool`): whether Pillow keeps only the upper 8 of 16 bits, as for color photos.
    """

    bits: int | None = None
    upper_only: bool = False


def stated_bits(image: Image.Image) -> Bits:
    """
    Read what an opened file states about its values. It must not be decoded yet.

    Args:
        image (`PIL.Image.Image`): the image. Images that are not from a file state nothing.

    Returns:
        [`Bits`]: bits per value.
    """
    tiles = getattr(image, "tile", None) or ()
    raw = str([tile[3] for tile in tiles if len(tile) > 3])
    if not image.mode.startswith(("I", "F")):
        # Pillow scales the values of PPM files with other maxima itself.
        return Bits(upper_only=";16" in raw or (image.format == "PPM" and "65535" in raw))
    if image.format == "PPM" and any(tile[0].startswith("ppm") for tile in tiles):
        return Bits(16)
    tags = getattr(image, "tag_v2", None) or {}
    for bits in tags.get(_BITS_PER_SAMPLE, ()):
        if 8 < bits < 16:
            return Bits(bits)
    largest = tags.get(_MAX_SAMPLE_VALUE)
    largest = max(largest) if isinstance(largest, tuple) and largest else largest
    if isinstance(largest, int) and 255 <= largest < 65535 and (largest + 1) & largest == 0:
        return Bits(largest.bit_length())
    return Bits()


def check_upper_bits(image: Image.Image, stated: Bits, bit_depth: int | None) -> None:
    """
    Refuse a color photo with 16 bits per value of which Pillow dropped the bits that are used.

    Args:
        image (`PIL.Image.Image`): the decoded image.
        stated ([`Bits`]): what its file states.
        bit_depth (`int`, *optional*): bits per value, as the user states them.

    Raises:
        ValueError: if the photo is refused.
    """
    if not stated.upper_only or bit_depth == 16:
        return
    bands = image.getbands()
    extrema: Any = image.getextrema() if len(bands) > 1 else (image.getextrema(),)
    high = max(int(top) for band, (_, top) in zip(bands, extrema) if band != "A")
    if bit_depth is not None or high < CERTAINLY_16_BITS >> 8:
        raise ValueError(
            "Expected colors that use 16 bits, because only the upper 8 bits of such files can be read, found values "
            f"below {(high + 1) << 8}; convert the photo to 8 bits, or pass bit_depth=16 (--bit-depth on the command "
            "line) if it is this dark."
        )


def describe(array: np.ndarray) -> str:
    """
    Describe an array for an error message.

    Args:
        array (`np.ndarray`): the array.

    Returns:
        `str`: dtype and shape.
    """
    return f"an array of type {array.dtype} and shape {array.shape}"


def is_unclear_stack(array: Any) -> bool:
    """
    Check whether an array can be a stack of gray photos as well as a color photo with channels first.

    Args:
        array: the array. Tensors of torch have channels first by convention, so they are not unclear.

    Returns:
        `bool`: whether it is a NumPy array of shape (3 or 4, height, width).
    """
    return (
        isinstance(array, np.ndarray)
        and array.ndim == 3
        and array.shape[0] in (3, 4)
        and array.shape[-1] not in (1, 3, 4)
    )


def warn_unclear_stack(array: Any) -> None:
    """
    Say once that an array is read as one color photo, if it could be a stack of gray photos.

    Args:
        array: the array.
    """
    if is_unclear_stack(array):
        notice(
            "A NumPy array of shape (3, height, width) or (4, height, width) is read as one color photo with channels "
            "first. Pass several gray photos as a list."
        )


def from_array(
    array: np.ndarray,
    convert_rgb: bool = True,
    input_data_format: str | None = None,
    bit_depth: int | None = None,
    channel_order: str = "rgb",
) -> tuple[Image.Image, bool]:
    """
    Convert an array to an 8-bit image.

    Args:
        array (`np.ndarray`): the array, see [`load_image`].
        convert_rgb (`bool`, defaults to `True`): whether to convert to RGB. `False` keeps 1, 3 or 4 channels.
        input_data_format (`"channels_first"` or `"channels_last"`, *optional*): axis of the channels. Inferred from
            the shape by default.
        bit_depth (`int`, *optional*): bits per value, see [`load_image`].
        channel_order (`"rgb"` or `"bgr"`, defaults to `"rgb"`): order of the first three channels.

    Returns:
        `tuple[PIL.Image.Image, bool]`: the image, and whether its values were floats in [0, 1].

    Raises:
        ValueError: if the shape or the values are not those of an image.
    """
    found = describe(array)
    if array.ndim == 3:
        first = array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4)
        if input_data_format is not None:
            first = input_data_format == "channels_first"
        array = np.moveaxis(array, 0, -1) if first else array
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        described = "" if input_data_format is None else f" with input_data_format {input_data_format!r}"
        several = "; pass several photos as a list" if array.ndim in (3, 4) else ""
        raise ValueError(
            "Expected an array of shape (height, width), (height, width, channels) or (channels, height, width) with "
            f"1, 3 or 4 channels, found {found}{described}{several}."
        )
    if array.size == 0:
        raise ValueError(f"Expected an image with at least one pixel, found {found}.")
    array, is_float = to_8_bits(array, bit_depth)
    if array.ndim == 3 and channel_order == "bgr":
        array = array[..., [2, 1, 0, *range(3, array.shape[-1])]]
    image = Image.fromarray(np.ascontiguousarray(array))
    return (to_rgb(image) if convert_rgb else image), is_float


def to_8_bits(array: np.ndarray, bit_depth: int | None = None, wide: bool = False) -> tuple[np.ndarray, bool]:
    """
    Scale values to 8 bits.

    Args:
        array (`np.ndarray`): the values, at least one.
        bit_depth (`int`, *optional*): bits per value, from 8 to 16. Values of `uint8` and booleans do not need it.
        wide (`bool`, defaults to `False`): whether integers of any type are those of a 16-bit file.

    Returns:
        `tuple[np.ndarray, bool]`: the values as `uint8`, and whether they were floats in [0, 1].

    Raises:
        ValueError: if a value is outside the range, or the range is not clear.
    """
    found = describe(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255, False
    if np.issubdtype(array.dtype, np.floating):
        return _floats_to_8_bits(array, bit_depth, found)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Expected numbers, found {found}.")
    low, high = int(array.min()), int(array.max())
    if array.dtype.itemsize == 1 and low >= 0:
        if high == 1:
            notice(
                "An image of 8 bits contains only 0 and 1 and is almost black. Multiply masks by 255, and floats in "
                "[0, 1] by 255 before you convert them to uint8."
            )
        return array.astype(np.uint8), False
    if (array.dtype.kind == "u" and array.dtype.itemsize == 2) or wide or bit_depth is not None:
        return _scaled(array, low, high, _depth(low, high, bit_depth, found), found), False
    if low < 0 or high > 255:
        raise ValueError(
            f"Expected 8-bit values, 0 to 255, found {found} with values from {low} to {high}; convert 16-bit images "
            "to uint16, or pass bit_depth."
        )
    notice(f"Values of type {array.dtype} up to 255 are read as 8 bits. If they have more, pass bit_depth.")
    return array.astype(np.uint8), False


def _depth(low: int, high: int, bit_depth: int | None, found: str) -> int:
    """Return the bits per value of integers that can have up to 16 bits."""
    if low < 0 or high > 65535:
        raise ValueError(f"Expected 16-bit values, 0 to 65535, found {found} with values from {low} to {high}.")
    if bit_depth is not None:
        return bit_depth
    if 0 < high < CERTAINLY_16_BITS:
        probable = next(bits for bits in (8, 10, 12, 14) if high < 1 << bits)
        raise ValueError(
            f"Expected values that use 16 bits, found {found} with values up to {high}, which fit into {probable} "
            f"bits; pass bit_depth={probable} (--bit-depth on the command line), or 16 if the photo is this dark."
        )
    return 16


def _scaled(array: np.ndarray, low: int, high: int, bit_depth: int, found: str) -> np.ndarray:
    top = (1 << bit_depth) - 1
    if low < 0 or high > top:
        raise ValueError(
            f"Expected values from 0 to {top}, because bit_depth is {bit_depth}, found {found} with values from {low} "
            f"to {high}."
        )
    return np.rint(array / (top / 255.0)).astype(np.uint8)


def _floats_to_8_bits(array: np.ndarray, bit_depth: int | None, found: str) -> tuple[np.ndarray, bool]:
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite pixel values, found NaN or infinity in {found}.")
    low, high = float(array.min()), float(array.max())
    if bit_depth is not None and high > 1 + ROUNDING:
        top = (1 << bit_depth) - 1
        if low < -ROUNDING or high > top + ROUNDING:
            raise ValueError(
                f"Expected floats from 0 to {top}, because bit_depth is {bit_depth}, found {found} with values from "
                f"{low:g} to {high:g}."
            )
        return np.rint(array.clip(0, top) / (top / 255.0)).astype(np.uint8), False
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"Expected floats in [0, 1], found {found} with values from {low:g} to {high:g}; convert 8-bit values to "
            "uint8, or pass bit_depth."
        )
    if bit_depth is not None and high > 0:
        notice("Floats in [0, 1] are read as they are; bit_depth does not change them.")
    if 0 < high <= 1 / 255 + 1e-6:
        notice(
            f"A float image has no value above {high:.2g} and is almost black. Were its values divided by 255 twice?"
        )
    return np.rint(array.clip(0, 1) * 255.0).astype(np.uint8), True


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Convert an 8-bit image to RGB. Transparent pixels are shown on white, which is said once.

    Args:
        image (`PIL.Image.Image`): the image, of any mode with 8 bits per channel.

    Returns:
        `PIL.Image.Image`: the image in mode RGB.
    """
    if image.mode == "La":  # Pillow cannot convert premultiplied gray directly
        image = image.convert("LA")
    if image.mode not in ("RGBA", "LA", "PA", "RGBa") and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    layers = image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] == 255:
        return layers.convert("RGB")
    notice(
        f"A photo has transparent pixels, which are shown on {BACKGROUND}. What lies below them is not used. For "
        "another background, convert the photo to RGB."
    )
    background = Image.new("RGBA", layers.size, BACKGROUND)
    return Image.alpha_composite(background, layers).convert("RGB")


def as_channels_first(image: Image.Image, size: tuple[int, int] | None, resample: int) -> np.ndarray:
    """
    Resize an 8-bit image and return it as an array.

    Args:
        image (`PIL.Image.Image`): the image, in mode L, RGB or RGBA.
        size (`tuple[int, int]`, *optional*): height and width. By default, the size is kept.
        resample (`int`): a `PIL.Image.Resampling`.

    Returns:
        `np.ndarray` of shape `(channels, height, width)`: the values as `uint8`.
    """
    if size is not None:
        # Pillow would multiply the colors by the fourth channel. Resize every channel on its own.
        bands = image.split() if image.mode == "RGBA" else (image,)
        bands = tuple(band.resize((size[1], size[0]), resample) for band in bands)
        image = Image.merge("RGBA", bands) if len(bands) > 1 else bands[0]
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def as_list(images: Any) -> list:
    """
    Return an image, a list of images or a batch array as a list.

    Args:
        images: the images.

    Returns:
        `list`: one item per image.
    """
    if isinstance(images, (list, tuple)):
        return list(images)
    if (isinstance(images, np.ndarray) or is_tensor(images)) and images.ndim == 4:
        return list(images)
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OSU":  # paths
        return images.tolist()
    return [images]


__all__ = [
    "STATED_BITS",
    "Bits",
    "as_channels_first",
    "as_list",
    "check_upper_bits",
    "describe",
    "from_array",
    "is_unclear_stack",
    "stated_bits",
    "to_8_bits",
    "to_rgb",
    "warn_unclear_stack",
]
