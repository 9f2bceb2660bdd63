"""Load images and masks from files, URLs, PIL images and arrays."""

import os
import stat
import urllib.request
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .arguments_vip2clip import READING_ARGUMENTS, reading_arguments
from .heif_vip2clip import check_heif
from .image_listing_vip2clip import list_images
from .image_sources_vip2clip import choose_page, content_of_file, content_of_text, shorten
from .image_values_vip2clip import (
    STATED_BITS,
    check_upper_bits,
    describe,
    from_array,
    stated_bits,
    to_8_bits,
    to_rgb,
    warn_unclear_stack,
)
from .tensors_vip2clip import is_tensor


DEFAULT_TIMEOUT = 60.0
# Moves an opened image to the page to read. Gets the image and its name.
Pick = Callable[[Image.Image, str], None]


def load_image(
    image: Any,
    timeout: float | None = DEFAULT_TIMEOUT,
    *,
    bit_depth: int | None = None,
    page: int | None = None,
    channel_order: str = "rgb",
) -> Image.Image:
    """
    Load an image as upright 8-bit RGB.

    The EXIF orientation of files and PIL images is applied. An array made from a PIL image has no EXIF data, so it is
    not rotated: call `PIL.ImageOps.exif_transpose` first. Transparent pixels are shown on white, with a warning.
    Floats and images with more than 8 bits per channel are scaled and rounded to 8 bits, not clipped.

    Args:
        image (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `dict` or file object):
            The image, in one of these forms:

            - a path, an http(s), file or data URL, or the base64 text of an image file,
            - the content of an image file as `bytes`, `bytearray` or `memoryview`, or a file opened in binary mode,
            - a PIL image. Mode "I" is read as 16-bit, because Pillow opens 16-bit files in this mode,
            - an array of shape (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4
              channels, and 8-bit values in any integer type, 16-bit values in uint16, booleans, or floats in [0, 1].
              The fourth channel is transparency,
            - an undecoded image of `datasets`, a dict with `bytes` or `path`.
        timeout (`float`, *optional*, defaults to 60):
            Seconds to wait for a response from the server of a URL. `None` waits forever.
        bit_depth (`int`, *optional*):
            Bits per value, from 8 to 16, of images that store more than 8. By default, the bits that the file states.
            Otherwise 16, if a value is at least 16,384; images without such values are refused, because they could
            have 8, 10, 12 or 14 bits. Images of type uint8 and booleans are not changed. Floats above 1 are refused
            without it.
        page (`int`, *optional*):
            Page of a TIFF or frame of an animation, from 1. By default, the largest page, and several of this size are
            refused. Not used for arrays.
        channel_order (`"rgb"` or `"bgr"`, defaults to `"rgb"`):
            Order of the channels of arrays. It cannot be detected: arrays of OpenCV are `"bgr"`.

    Returns:
        `PIL.Image.Image`: the image, in mode RGB.

    Raises:
        OSError: if a file is missing, damaged or not an image, or a URL cannot be downloaded.
        ValueError: if the input is of another type, an array has another shape or range, the range of the values is
            not clear, a file has several pages, an image has no pixels, or a value is not finite.
    """
    warn_unclear_stack(image)
    return read_image(image, timeout, bit_depth=bit_depth, page=page, channel_order=channel_order)[0]


def read_image(
    image: Any,
    timeout: float | None = DEFAULT_TIMEOUT,
    convert_rgb: bool = True,
    input_data_format: str | None = None,
    *,
    bit_depth: int | None = None,
    page: int | None = None,
    channel_order: str = "rgb",
) -> tuple[Image.Image, bool]:
    """
    Load an image as [`load_image`] does, with more options.

    Args:
        image: the image, see [`load_image`].
        timeout (`float`, *optional*, defaults to 60):
            Seconds to wait for a response from the server of a URL. `None` waits forever.
        convert_rgb (`bool`, defaults to `True`):
            Whether to convert the image to RGB. `False` keeps its 1, 3 or 4 channels.
        input_data_format (`"channels_first"` or `"channels_last"`, *optional*):
            Axis of the channels of an array. By default, it is inferred from the shape.
        bit_depth, page, channel_order:
            See [`load_image`].

    Returns:
        `tuple[PIL.Image.Image, bool]`: the upright image with 8 bits per channel, in mode RGB (without conversion L,
        RGB or RGBA), and whether its values were floats in [0, 1].

    Raises:
        OSError: as [`load_image`].
        ValueError: as [`load_image`]. Also if an image has another mode and is not converted, or if
            `input_data_format` is set for an image that is not an array.
    """
    given: dict[str, Any] = {"bit_depth": bit_depth, "page": page, "channel_order": channel_order}
    reading_arguments({name: value for name, value in given.items() if value is not None})
    if is_tensor(image):
        image = image.detach().cpu()
        is_half = str(image.dtype) in ("torch.bfloat16", "torch.float16")
        image = (image.float() if is_half else image).numpy()
    if isinstance(image, np.ndarray) and image.dtype.kind not in "OSU":
        return from_array(image, convert_rgb, input_data_format, bit_depth, channel_order)
    if isinstance(image, np.ndarray):
        if image.size != 1:
            raise ValueError(f"Expected one image, found {describe(image)}; pass several images as a list.")
        return read_image(image.item(), timeout, convert_rgb, input_data_format, **given)

    def pick(opened: Image.Image, shown: str) -> None:
        choose_page(opened, shown, page)

    if isinstance(image, (str, os.PathLike)):
        path = os.fsdecode(image)
        opened, name = _open(path, timeout, pick), shorten(path)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        opened, name = _decode(BytesIO(image), "<bytes>", pick), "<bytes>"
    elif isinstance(image, dict) and (image.get("bytes") is not None or image.get("path") is not None):
        opened, name = _open_undecoded(image, timeout, pick), repr(image.get("path") or "<bytes>")
    elif isinstance(image, Image.Image):
        opened, name = image, "The image"
        if isinstance(image, ImageFile.ImageFile):
            name = repr(image.filename) if getattr(image, "filename", "") else name
            _choose_page_of_opened(image, name, page)
    elif callable(getattr(image, "read", None)):
        content, name = content_of_file(image)
        opened = _decode(BytesIO(content), name, pick)
    else:
        raise ValueError(f"Expected a path, a URL, a PIL image or an array, found {type(image).__name__}.")
    if input_data_format is not None:
        raise ValueError(
            f"input_data_format is {input_data_format!r}, but the image is not an array; remove the argument."
        )
    return _upright(opened, name, convert_rgb, bit_depth)


def _choose_page_of_opened(image: ImageFile.ImageFile, name: str, page: int | None) -> None:
    try:
        choose_page(image, name, page)
    except (OSError, EOFError, AttributeError, SyntaxError) as error:
        raise OSError(
            f"{name} could not be decoded ({error}); the file may be truncated, damaged or closed."
        ) from error


def _open_undecoded(image: dict[str, Any], timeout: float | None, pick: Pick | None = None) -> Image.Image:
    """Open an image as `datasets` stores it."""
    content, path = image.get("bytes"), image.get("path")
    if content is not None:
        return _decode(BytesIO(content), repr(path or "<bytes>"), pick)
    if path is None:
        raise ValueError(f"Expected a dict with 'bytes' or 'path', found the keys {sorted(image)}.")
    return _open(os.fspath(path), timeout, pick)


def _open(source: str, timeout: float | None, pick: Pick | None = None) -> Image.Image:
    shown, content = shorten(source), content_of_text(source)
    if isinstance(content, bytes):
        return _decode(BytesIO(content), shown, pick)
    source = content
    if source.lower().startswith(("http://", "https://")):
        try:
            content = _download(source, timeout)
        except Exception as error:  # errors of the HTTP client are not subclasses of OSError
            reason = str(error).partition("\n")[0]
            raise OSError(f"{shown} could not be downloaded ({reason}); check the URL and the connection.") from error
        return _decode(BytesIO(content), shown, pick)
    try:
        kind = os.stat(source).st_mode
        if stat.S_ISDIR(kind):
            raise OSError(f"{shown} is a folder; expected an image file.")
        if not stat.S_ISREG(kind):
            raise OSError(f"{shown} is not a regular file; expected an image file.")
        # The file is closed before decoding, so that it can be moved or deleted whatever happens.
        with open(source, "rb") as file:
            return _decode(BytesIO(file.read()), shown, pick)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image file {shown} not found; check the path.") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{shown} cannot be read ({error.strerror}); check the path and its permissions.") from error


def _download(url: str, timeout: float | None) -> bytes:
    try:
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # public, but exported lazily
    except ImportError:
        # The runtime without torch has no HTTP client but that of Python, which knows fewer certificates.
        with urllib.request.urlopen(url, timeout=timeout) as response:
            return response.read()
    found = httpx.get(url, timeout=timeout, follow_redirects=True)
    found.raise_for_status()
    return found.content


def _decode(source: BytesIO, shown: str, pick: Pick | None = None) -> Image.Image:
    """Decode an image. `pick` moves it to the page to read."""
    if source.getbuffer().nbytes == 0:
        raise OSError(f"{shown} is empty; expected an image file.")
    check_heif(bytes(source.getbuffer()[:64]), shown)
    try:
        image = Image.open(source)
        if pick is not None:
            pick(image, shown)
        # Pillow only warns up to twice the limit, and most programs do not show the warning.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        # What the file states about its values, before Pillow forgets it.
        image.info[STATED_BITS] = stated_bits(image)
        image.load()
    except UnidentifiedImageError as error:
        raise OSError(f"{shown} cannot be read as an image; expected a format Pillow supports.") from error
    except Image.DecompressionBombError as error:
        raise OSError(
            f"{shown} is too large; expected at most {Image.MAX_IMAGE_PIXELS:,} pixels. To read it, raise "
            "PIL.Image.MAX_IMAGE_PIXELS, or --max-pixels on the command line."
        ) from error
    except ValueError as error:
        if str(error).startswith(shown):  # from `pick`
            raise
        raise OSError(f"{shown} could not be decoded ({error}); the file may be truncated or damaged.") from error
    except Exception as error:  # Pillow's decoders raise various errors for damaged files
        raise OSError(f"{shown} could not be decoded ({error}); the file may be truncated or damaged.") from error
    return image


def _upright(image: Image.Image, name: str, convert_rgb: bool, bit_depth: int | None) -> tuple[Image.Image, bool]:
    if 0 in image.size:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels; expected at least 1 x 1.")
    try:
        stated = image.info[STATED_BITS] if STATED_BITS in image.info else stated_bits(image)
        image = ImageOps.exif_transpose(image)  # always a copy
        image.info.pop(STATED_BITS, None)
        if image.mode.startswith("I") or image.mode == "F":
            # Pillow would clip the values at 255. It can open 16-bit files in mode "I".
            array, is_float = to_8_bits(np.asarray(image), bit_depth or stated.bits, wide=True)
            if isinstance(key := image.info.get("transparency"), int):
                array = np.dstack([array, np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)])
            image = Image.fromarray(array)
            return (to_rgb(image) if convert_rgb else image.convert("L")), is_float
        check_upper_bits(image, stated, bit_depth)
        if image.mode == "L" and image.getextrema() == (0, 1):
            to_8_bits(np.asarray(image))  # says that it is almost black
        if convert_rgb:
            return to_rgb(image), False
        if image.mode not in ("1", "L", "RGB", "RGBA"):
            raise ValueError(
                f"{name} has mode {image.mode!r}; expected 1, L, RGB or RGBA. Other modes need do_convert_rgb=True."
            )
        return (image.convert("L") if image.mode == "1" else image), False
    except (OSError, SyntaxError) as error:
        raise OSError(f"{name} could not be decoded ({error}); the file may be truncated or damaged.") from error
    except ValueError as error:
        if str(error).startswith(name):
            raise
        if "closed" in str(error):
            raise OSError(f"{name} is closed; expected an open PIL image. Open it again.") from error
        raise ValueError(f"{name}: {error}") from error


def reading_options(image_processor: Any) -> dict[str, Any]:
    """
    Return how an image processor reads images, for [`load_image`].

    Args:
        image_processor ([`ViP2ClipImageProcessor`]): the image processor.

    Returns:
        `dict[str, Any]`: those of `bit_depth`, `page` and `channel_order` that are set.
    """
    found = {name: getattr(image_processor, name, None) for name in READING_ARGUMENTS}
    return {name: value for name, value in found.items() if value is not None}


__all__ = ["DEFAULT_TIMEOUT", "list_images", "load_image", "read_image", "reading_options"]
