"""Read masks: the same rules in the image processor, training, evaluation, calibration and checks of the data."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.utils import logging

from .image_loading_vip2clip import DEFAULT_TIMEOUT, _open, _open_undecoded
from .mask_channels_vip2clip import PageValues, is_noisy, page_values
from .mask_options_vip2clip import DEFAULT_MASK_OPTIONS, MaskOptions
from .mask_orientation_vip2clip import ORIENTATION, as_undecoded, read_header, turn, upright_size
from .mask_regions_vip2clip import ReducedMask, reduce_mask


logger = logging.get_logger(__name__)
REDUCED_PAGE = 0x00FE  # TIFF tag of thumbnails and lower resolutions
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF")

# What is decided by rule. The text completes "masks ...", in reports of the data and in warnings.
MASK_RULES = {
    "index": "masks with a palette read by index (0 is background), because their gray values mark other pixels; "
    "mask_channel (--mask-channel) luminance reads gray values",
    "gray palette": "masks with a gray palette read by gray value, because its index marks more than half of the "
    "pixels; mask_channel (--mask-channel) index reads the index",
    "alpha": "masks read from their alpha channel, because their visible colours are constant; mask_channel "
    "(--mask-channel) any reads colours",
    "any": "masks with colours, where a pixel counts if any channel is above the threshold; mask_channel "
    "(--mask-channel) luminance reads gray values",
    "transparent": "masks that are fully transparent, read from their colours; mask_channel (--mask-channel) alpha "
    "reads them as empty",
    "pages": "masks with several pages, united",
    "reduced pages": "masks with pages of lower resolution, which are left out",
    "rotated": "masks rotated by the EXIF orientation of their image, because they have the size of its stored pixels",
    "rotated or upright": "masks rotated by the EXIF orientation of their image that would also fit the upright "
    "image; mask_orientation (--mask-orientation) own does not rotate masks, image rotates them without this message",
    "noise": "masks with noise near 0 counted as anomalous; use a mask threshold of 127 for JPEG masks",
    "below": "masks with values above 0, none of them above the mask threshold",
}


class MaskSizeError(ValueError):
    """A mask and its image differ in size."""


@dataclass(frozen=True)
class MaskReading:
    """
    A mask that was read.

    Args:
        marked (`np.ndarray` of shape `(height, width)`, bool): anomalous pixels.
        rules (`tuple[str, ...]`): names of the rules in `MASK_RULES` that decided how it is read.
        has_image_size (`bool`): whether it is known to have the size of its image.
    """

    marked: np.ndarray
    rules: tuple[str, ...] = ()
    has_image_size: bool = False


@dataclass
class _Values:
    """Values of a mask before they are compared with the image."""

    values: np.ndarray
    marked: np.ndarray
    rules: list[str]
    is_file: bool = False
    has_orientation: bool = False


def load_mask(mask: Any, channel: str = "auto") -> np.ndarray:
    """
    Load a mask with one value per pixel, without scaling the values.

    Palettes are read by index if it marks other pixels than the colours, alpha where the colours are constant, other
    colours by their largest channel. Several pages of a TIFF file are united.

    Args:
        mask (`str`, `os.PathLike`, `bytes`, `dict`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            Path, content of a file, image, array with one channel, or undecoded image of `datasets`.
        channel (`str`, defaults to `"auto"`):
            Where the values come from, see [`MaskOptions`].

    Returns:
        `np.ndarray` of shape `(height, width)`: the mask, in the dtype of the file or array.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if an array has another shape or type, a value is negative or not finite, the mask is ambiguous,
            or it has no such channel.
    """
    read = _read_values(mask, MaskOptions(channel=channel).over(DEFAULT_MASK_OPTIONS), mask_name(mask))
    _say(rule for rule in read.rules if rule not in ("noise", "below"))
    return read.values


def read_mask(mask: Any, options: MaskOptions, image: Any = None, name: str | None = None) -> MaskReading:
    """
    Read the anomalous pixels of a mask, without logging how.

    Args:
        mask: the mask, see [`load_mask`].
        options ([`MaskOptions`]): how to read it. Options that are not set have their default.
        image (*optional*): the image of the mask, not decoded, for its size and EXIF orientation, see [`load_image`].
        name (`str`, *optional*): name of the mask in errors, if it has no path.

    Returns:
        [`MaskReading`]: the anomalous pixels, and the rules that were used.

    Raises:
        OSError: if the mask cannot be read.
        ValueError: see [`load_mask`]. Also if the mask and its image differ in size.
    """
    options = options.over(DEFAULT_MASK_OPTIONS)
    name = mask_name(mask) if name is None or mask_name(mask) != "The mask" else name
    read = _read_values(mask, options, name)
    marked, rules = ~read.marked if options.invert else read.marked, read.rules
    header = read_header(image)
    if header is not None:
        stored, upright, orientation = header
        if read.is_file and orientation > 1 and options.orientation != "own":
            fits_both = stored == upright
            if marked.shape == stored and not (fits_both and read.has_orientation):
                marked = turn(marked, orientation)
                if not fits_both:
                    rules = [*rules, "rotated"]
                elif options.orientation == "auto":
                    rules = [*rules, "rotated or upright"]
        check_mask_size(marked, upright, name, mask_name(image, "image"))
    return MaskReading(np.ascontiguousarray(marked), tuple(dict.fromkeys(rules)), header is not None)


def marked_pixels(mask: Any, options: MaskOptions, image: Any = None, name: str | None = None) -> np.ndarray:
    """
    Read the anomalous pixels of a mask. Logs once per rule how masks are read.

    Args:
        mask, options, image, name: see [`read_mask`].

    Returns:
        `np.ndarray` of shape `(height, width)`, bool: the anomalous pixels.

    Raises:
        OSError, ValueError: see [`read_mask`].
    """
    read = read_mask(mask, options, image, name)
    _say(read.rules)
    return read.marked


def mask_labels(
    mask: Any,
    options: MaskOptions,
    image: Any,
    image_size: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    position: int = 0,
) -> ReducedMask:
    """
    Read a mask and resize it to the size of the model.

    Args:
        mask, options, image: see [`read_mask`]. Without a mask (`None`), no pixel is anomalous.
        image_size (`tuple[int, int]`, *optional*): height and width of the upright image, if it is loaded already.
        size (`tuple[int, int]`, *optional*): height and width of the result. Defaults to the size of the image.
        position (`int`, defaults to 0): position of the image in its batch, to name a mask without a path.

    Returns:
        [`ReducedMask`]: the resized mask and its regions.

    Raises:
        OSError, ValueError: see [`read_mask`].
    """
    if mask is None and size is not None:
        return ReducedMask(np.zeros(size, dtype=np.uint8))
    if mask is None:
        return ReducedMask(np.zeros(upright_size(image) if image_size is None else image_size, dtype=np.uint8))
    name = mask_name(mask)
    name = f"The mask at position {position}" if name == "The mask" else name
    read = read_mask(mask, options, image, name)
    _say(read.rules)
    marked = read.marked
    if image_size is not None or not read.has_image_size:
        size_of_image = upright_size(image) if image_size is None else image_size
        check_mask_size(marked, size_of_image, name, mask_name(image, "image"))
    size = (marked.shape[0], marked.shape[1]) if size is None else size
    return reduce_mask(marked, size, options.keep_small_regions is not False)


def check_mask_size(marked: np.ndarray, size: tuple[int, int], mask: str, image: str) -> None:
    """
    Check that a mask has the size of its image.

    Args:
        marked (`np.ndarray`): the mask.
        size (`tuple[int, int]`): height and width of the upright image.
        mask, image (`str`): names, see [`mask_name`].

    Raises:
        MaskSizeError: if the sizes differ.
    """
    if marked.shape != size:
        raise MaskSizeError(
            f"{mask} has {marked.shape[0]} x {marked.shape[1]} pixels (height x width); expected {size[0]} x "
            f"{size[1]}, the size of {'its image' if image == 'The image' else image[0].lower() + image[1:]}."
        )


def mask_name(source: Any, kind: str = "mask") -> str:
    """
    Name a mask or an image in an error.

    Args:
        source: path, PIL image, undecoded image of `datasets` or array.
        kind (`str`, defaults to `"mask"`): `"mask"` or `"image"`.

    Returns:
        `str`: `"Mask 'masks/1.png'"`, or `"The mask"` without a path.
    """
    if isinstance(source, dict):
        source = source.get("path")
    path = getattr(source, "filename", None) if isinstance(source, Image.Image) else source
    return (
        f"{kind.capitalize()} {os.fspath(path)!r}" if isinstance(path, (str, os.PathLike)) and path else f"The {kind}"
    )


def _say(rules: Any) -> None:
    for rule in rules:
        logger.warning_once(f"There are {MASK_RULES[rule]}.")


def _read_values(mask: Any, options: MaskOptions, name: str) -> _Values:
    threshold, channel = options.threshold or 0, options.channel or "auto"
    opened = mask = as_undecoded(mask)
    if isinstance(mask, (str, os.PathLike)):
        opened = _open(os.fspath(mask), DEFAULT_TIMEOUT)
    elif isinstance(mask, dict):
        opened = _open_undecoded(mask, DEFAULT_TIMEOUT)
    if isinstance(opened, Image.Image):
        has_orientation = _has_orientation(opened, mask)
        if has_orientation and opened.format == "TIFF" and isinstance(mask, (str, os.PathLike)):
            # Pillow 12 scrambles uncompressed TIFF files with an orientation if it maps them into memory.
            with open(mask, "rb") as file:
                opened = _open_undecoded({"bytes": file.read(), "path": os.fspath(mask)}, None)
        read = _from_image(opened, channel, threshold, name)
        read.has_orientation = has_orientation
    else:
        values = _from_array(mask, name)
        read = _Values(values, values if values.dtype == bool else values > threshold, [])
    _check_values(read.values, name)
    if not read.marked.any() and read.values.any():
        read.rules.append("below")
    return read


def _from_image(mask: Image.Image, channel: str, threshold: float, name: str) -> _Values:
    if 0 in mask.size:
        raise ValueError(f"{name} has {mask.width} x {mask.height} pixels; expected at least 1 x 1.")
    is_lossy = mask.format in LOSSY_FORMATS
    pages, rules = _pages(mask, name)
    found: list[PageValues] = []
    for page in pages:
        if page.getexif().get(ORIENTATION, 1) != 1:
            page = ImageOps.exif_transpose(page)
        found.append(page_values(page, channel, threshold, is_lossy, name))
        _check_values(found[-1].values, name)
        if not found[-1].is_index and is_noisy(found[-1].values, threshold, is_lossy):
            rules.append("noise")
    values, marked = found[0].values, found[0].marked(threshold)
    for page_read in found[1:]:
        if page_read.values.shape != values.shape:
            raise ValueError(f"The pages of {name} differ in size; expected one size. Save the mask with one page.")
        values, marked = np.maximum(values, page_read.values), marked | page_read.marked(threshold)
    rules += [page_read.rule for page_read in found if page_read.rule is not None]
    return _Values(values, marked, rules, is_file=True)


def _has_orientation(opened: Image.Image, source: Any) -> bool:
    """Return whether a mask file has an EXIF orientation of its own."""
    if opened.format == "TIFF":
        # Pillow removes the tag when it decodes the file. Most programs write an orientation of 1 to every TIFF file.
        header = read_header(source)
        return header is not None and header[2] > 1
    return opened.getexif().get(ORIENTATION) in range(1, 9)


def _pages(mask: Image.Image, name: str) -> tuple[list[Image.Image], list[str]]:
    """Return the pages of a mask and the rules that chose them."""
    count = getattr(mask, "n_frames", 1)
    if count == 1 or mask.format in ("MPO", "ICO", "ICNS"):  # the other pictures are previews
        return [mask], [] if count == 1 else ["reduced pages"]
    if mask.format != "TIFF":
        raise ValueError(f"{name} has {count} frames; expected one. Save one frame, for example as PNG.")
    pages: list[Image.Image] = []
    rules = ["pages"]
    current = mask.tell()
    try:
        for number in range(count):
            mask.seek(number)
            tags: Any = getattr(mask, "tag_v2", {})
            page = mask.copy()
            if number and page.size != pages[0].size and tags.get(REDUCED_PAGE, 0) & 1:
                rules.append("reduced pages")
            else:
                pages.append(page)
        mask.seek(current)
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise OSError(f"{name} could not be decoded ({error}); the file may be truncated or damaged.") from error
    return pages, rules if len(pages) > 1 else rules[1:]


def _from_array(mask: Any, name: str) -> np.ndarray:
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
        mask = (mask.float() if mask.is_floating_point() else mask).numpy()
    mask = np.asarray(mask)
    found = f"an array of type {mask.dtype} and shape {mask.shape}"
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[-1]):
        mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"Expected a mask of shape (height, width), found {found}.")
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"Expected a mask of numbers, found {found}.")
    return mask


def _check_values(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or infinity; expected finite mask values.")
    if values.dtype.kind in "if" and values.min() < 0:
        raise ValueError(
            f"{name} has values from {values.min():g} to {values.max():g}; expected values of at least 0, greater for "
            "anomalous pixels. Convert negative values."
        )


__all__ = [
    "MASK_RULES",
    "MaskReading",
    "MaskSizeError",
    "check_mask_size",
    "load_mask",
    "marked_pixels",
    "mask_labels",
    "mask_name",
    "read_mask",
]
