"""Load images and masks from files, URLs, PIL images and arrays."""

import os
from io import BytesIO
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # public, but exported lazily
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension


DEFAULT_TIMEOUT = 60.0
# Tolerance for floats outside [0, 1].
ROUNDING = 1e-3
IMAGE_EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga"}
    | {".tif", ".tiff", ".webp"}
)


def _describe(array: np.ndarray) -> str:
    return f"an array of type {array.dtype} and shape {array.shape}"


def _describe_format(input_data_format: ChannelDimension | None) -> str:
    return "" if input_data_format is None else f" with input_data_format {input_data_format.value!r}"


def load_image(image: Any, timeout: float | None = DEFAULT_TIMEOUT) -> Image.Image:
    """
    Load an image as upright 8-bit RGB.

    The EXIF orientation is applied and transparency is dropped. Floats and images with more than 8 bits per channel
    are scaled and rounded to 8 bits, not clipped.

    Args:
        image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `dict`):
            The image, in one of these forms:

            - a path or an http(s) URL,
            - a PIL image. Mode "I" is read as 16-bit, because Pillow opens 16-bit files in this mode,
            - an array of shape (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4
              channels, and 8-bit values in any integer type, 16-bit values in uint16, booleans, or floats in [0, 1],
            - an undecoded image of `datasets`, a dict with `bytes` or `path`.
        timeout (`float`, *optional*, defaults to 60):
            Seconds to wait for a response from the server of a URL. `None` waits forever.

    Returns:
        `PIL.Image.Image`: the image, in mode RGB.

    Raises:
        OSError: if a file is missing, damaged or not an image, or a URL cannot be downloaded.
        ValueError: if the input is of another type, an array has another shape or range, an image has no pixels, or a
            value is not finite.
    """
    return read_image(image, timeout)[0]


def read_image(
    image: Any,
    timeout: float | None = DEFAULT_TIMEOUT,
    convert_rgb: bool = True,
    input_data_format: ChannelDimension | None = None,
) -> tuple[Image.Image, bool]:
    """
    Load an image as [`load_image`] does, with more options.

    Args:
        image: the image, see [`load_image`].
        timeout (`float`, *optional*, defaults to 60):
            Seconds to wait for a response from the server of a URL. `None` waits forever.
        convert_rgb (`bool`, defaults to `True`):
            Whether to convert the image to RGB. `False` keeps its 1, 3 or 4 channels.
        input_data_format (`ChannelDimension`, *optional*):
            Axis of the channels of an array. By default, it is inferred from the shape.

    Returns:
        `tuple[PIL.Image.Image, bool]`: the upright image with 8 bits per channel, in mode RGB (without conversion L,
        RGB or RGBA), and whether its values were floats in [0, 1].

    Raises:
        OSError: as [`load_image`].
        ValueError: as [`load_image`]. Also if an image has another mode and is not converted, or if
            `input_data_format` is set for an image that is not an array.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
    if isinstance(image, np.ndarray):
        return _from_array(image, convert_rgb, input_data_format)
    if isinstance(image, (str, os.PathLike)):
        opened, name = _open(os.fspath(image), timeout), repr(os.fspath(image))
    elif isinstance(image, dict) and (image.get("bytes") is not None or image.get("path") is not None):
        opened, name = _open_undecoded(image, timeout), repr(image.get("path") or "<bytes>")
    elif isinstance(image, Image.Image):
        opened, name = image, "The image"
    else:
        raise ValueError(f"Expected a path, a URL, a PIL image or an array, found {type(image).__name__}.")
    if input_data_format is not None:
        raise ValueError(
            f"input_data_format is {input_data_format.value!r}, but the image is not an array; remove the argument."
        )
    return _upright(opened, name, convert_rgb)


def _open_undecoded(image: dict[str, Any], timeout: float | None) -> Image.Image:
    """Open an image as `datasets` stores it."""
    content, path = image.get("bytes"), image.get("path")
    if content is not None:
        return _decode(BytesIO(content), repr(path or "<bytes>"))
    if path is None:
        raise ValueError(f"Expected a dict with 'bytes' or 'path', found the keys {sorted(image)}.")
    return _open(os.fspath(path), timeout)


def _open(source: str, timeout: float | None) -> Image.Image:
    shown = repr(source if len(source) <= 200 else f"{source[:100]}...")
    if source.lower().startswith(("http://", "https://")):
        try:
            response = httpx.get(source, timeout=timeout, follow_redirects=True)
            response.raise_for_status()
        except Exception as error:  # errors of the HTTP client are not subclasses of OSError
            reason = str(error).partition("\n")[0]
            raise OSError(f"{shown} could not be downloaded ({reason}); check the URL and the connection.") from error
        return _decode(BytesIO(response.content), shown)
    if os.path.isdir(source):
        raise OSError(f"{shown} is a folder; expected an image file.")
    return _decode(source, shown)


def _decode(source: str | BytesIO, shown: str) -> Image.Image:
    try:
        image = Image.open(source)
        # Pillow only warns up to twice the limit, and most programs do not show the warning.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image file {shown} not found; check the path.") from error
    except UnidentifiedImageError as error:
        raise OSError(f"{shown} cannot be read as an image; expected a format Pillow supports.") from error
    except Image.DecompressionBombError as error:
        raise OSError(
            f"{shown} is too large; expected at most {Image.MAX_IMAGE_PIXELS:,} pixels. To read it, raise "
            "PIL.Image.MAX_IMAGE_PIXELS, or --max-pixels on the command line."
        ) from error
    except Exception as error:  # Pillow's decoders raise various errors for damaged files
        raise OSError(f"{shown} could not be decoded ({error}); the file may be truncated or damaged.") from error
    return image


def _upright(image: Image.Image, name: str, convert_rgb: bool) -> tuple[Image.Image, bool]:
    if 0 in image.size:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels; expected at least 1 x 1.")
    try:
        image = ImageOps.exif_transpose(image)  # always a copy
        if image.mode.startswith("I") or image.mode == "F":
            # Pillow would clip the values at 255. It can open 16-bit files in mode "I".
            array = np.asarray(image)
            return _from_array(array if image.mode == "F" else _as_uint16(array, name), convert_rgb)
        if convert_rgb:
            return (image if image.mode == "RGB" else image.convert("RGB")), False
        if image.mode not in ("1", "L", "RGB", "RGBA"):
            raise ValueError(
                f"{name} has mode {image.mode!r}; expected 1, L, RGB or RGBA. Other modes need do_convert_rgb=True."
            )
        return (image.convert("L") if image.mode == "1" else image), False
    except (OSError, SyntaxError) as error:
        raise OSError(f"{name} could not be decoded ({error}); the file may be truncated or damaged.") from error


def _as_uint16(array: np.ndarray, name: str) -> np.ndarray:
    if array.min() < 0 or array.max() > 65535:
        raise ValueError(f"{name} has values from {array.min()} to {array.max()}; expected 16-bit values, 0 to 65535.")
    return array.astype(np.uint16)


def _from_array(
    array: np.ndarray, convert_rgb: bool, input_data_format: ChannelDimension | None = None
) -> tuple[Image.Image, bool]:
    found, is_float = _describe(array), np.issubdtype(array.dtype, np.floating)
    if array.ndim == 3:
        first = array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4)
        if input_data_format is not None:
            first = input_data_format == ChannelDimension.FIRST
        array = np.moveaxis(array, 0, -1) if first else array
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(
            "Expected an array of shape (height, width), (height, width, channels) or (channels, height, width) with "
            f"1, 3 or 4 channels, found {found}{_describe_format(input_data_format)}."
        )
    if array.size == 0:
        raise ValueError(f"Expected an image with at least one pixel, found {found}.")

    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # in any byte order
        array = np.rint(array / 257.0).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"Expected 8-bit values, 0 to 255, found {found} with values from {array.min()} to {array.max()}; "
                "convert 16-bit images to uint16."
            )
        array = array.astype(np.uint8)
    elif is_float:
        if not np.isfinite(array).all():
            raise ValueError(f"Expected finite pixel values, found NaN or infinity in {found}.")
        if array.min() < -ROUNDING or array.max() > 1 + ROUNDING:
            raise ValueError(
                f"Expected floats in [0, 1], found {found} with values from {array.min():g} to {array.max():g}; "
                "convert 8-bit values to uint8."
            )
        array = np.rint(array.clip(0, 1) * 255.0).astype(np.uint8)
    else:
        raise ValueError(f"Expected numbers, found {found}.")
    if convert_rgb and array.ndim == 3:
        array = array[..., :3]
    image = Image.fromarray(np.ascontiguousarray(array))
    return (image.convert("RGB") if convert_rgb else image), is_float


def list_images(folder: str | os.PathLike[str], recursive: bool = True) -> list[str]:
    """
    List the image files in a folder and its subfolders, without hidden ones.

    Args:
        folder (`str` or `os.PathLike`): the folder.
        recursive (`bool`, defaults to `True`): whether to list subfolders.

    Returns:
        `list[str]`: paths of the images, sorted by name.

    Raises:
        OSError: if the folder cannot be read.
        ValueError: if the folder contains no images.
    """
    os.scandir(folder).close()  # raises if the folder cannot be read
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        images = (name for name in files if not name.startswith("."))
        found += [os.path.join(path, name) for name in images if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS]
    found.sort()
    if not found:
        raise ValueError(
            f"Folder {os.fspath(folder)!r} contains no images; expected files such as .png or .jpg in the folder."
        )
    return found


def load_mask(mask: Any) -> np.ndarray:
    """
    Load a mask with one value per pixel, without scaling the values.

    Args:
        mask (`str`, `os.PathLike`, `dict`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            Path, image, array with one channel, or undecoded image of `datasets`. Colors and palettes are converted
            to gray values.

    Returns:
        `np.ndarray` of shape `(height, width)`: the mask, in the dtype of the file or array.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if an array has another shape, or a value is not finite.
    """
    if isinstance(mask, (str, os.PathLike)):
        mask = _open(os.fspath(mask), DEFAULT_TIMEOUT)
    if isinstance(mask, dict):
        mask = _open_undecoded(mask, DEFAULT_TIMEOUT)
    if isinstance(mask, Image.Image):
        mask = ImageOps.exif_transpose(mask)
        if not (mask.mode.startswith("I") or mask.mode == "F"):
            mask = mask.convert("L")
        return np.asarray(mask)
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
        mask = (mask.float() if mask.is_floating_point() else mask).numpy()
    mask = np.asarray(mask)
    found = _describe(mask)
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[-1]):
        mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    if mask.ndim != 2:
        raise ValueError(f"Expected a mask of shape (height, width), found {found}.")
    if np.issubdtype(mask.dtype, np.floating) and not np.isfinite(mask).all():
        raise ValueError(f"Expected finite mask values, found NaN or infinity in {found}.")
    return mask


__all__ = ["DEFAULT_TIMEOUT", "IMAGE_EXTENSIONS", "list_images", "load_image", "load_mask", "read_image"]
