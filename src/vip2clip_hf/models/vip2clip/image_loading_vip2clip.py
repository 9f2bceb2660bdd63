"""Load images and masks: files, URLs, PIL images and arrays."""

import os
from io import BytesIO
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps, UnidentifiedImageError


DEFAULT_TIMEOUT = 60.0
# Floats may leave [0, 1] by this much.
ROUNDING = 1e-3
IMAGE_EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga"}
    | {".tif", ".tiff", ".webp"}
)


def _describe(image: Any) -> str:
    if isinstance(image, Image.Image):
        return f"{image.mode} image of {image.width} x {image.height} pixels"
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{image.dtype} array of shape {tuple(image.shape)}"
    return repr(image)


def load_image(image: Any, timeout: float | None = DEFAULT_TIMEOUT) -> Image.Image:
    """
    Anything that shows one image as an upright 8-bit RGB image.

    Files with more than 8 bits are scaled, not cut off; EXIF orientation is applied; transparency is dropped.

    Args:
        image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            Path, http(s) URL, image, or array of shape (height, width), (height, width, channels) or (channels,
            height, width) with 1, 3 or 4 channels, or an undecoded image of `datasets`, a dict with `bytes` or `path`.
            Arrays hold 8-bit values in an integer type, 16-bit values in uint16, booleans, or floats in [0, 1].
            Pillow's mode "I" is read as 16 bits, which is how it reads such files.
        timeout (`float`, *optional*, defaults to 60):
            Seconds a server may be silent before a URL is given up; `None` waits forever.

    Returns:
        `PIL.Image.Image`: mode RGB.

    Raises:
        OSError: a file that is missing, truncated or no image, or a URL that cannot be read.
        ValueError: an array of another shape, type or range, an image without pixels, or values that are not finite.
    """
    if isinstance(image, (str, os.PathLike)):
        return _upright_rgb(_open(os.fspath(image), timeout), os.fspath(image))
    if isinstance(image, dict) and (image.get("bytes") is not None or image.get("path") is not None):
        return _upright_rgb(_open_undecoded(image, timeout), str(image.get("path") or "the image"))
    if isinstance(image, Image.Image):
        return _upright_rgb(image, "the image")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    raise ValueError(f"Expected a path, a URL, a PIL image or an array, found {type(image).__name__}.")


def _open_undecoded(image: dict[str, Any], timeout: float | None) -> Image.Image:
    """An image as `datasets` stores it."""
    content, path = image.get("bytes"), image.get("path")
    return _open(os.fspath(path), timeout) if content is None else _decode(BytesIO(content), repr(path or "in memory"))


def _open(source: str, timeout: float | None) -> Image.Image:
    shown = repr(source if len(source) <= 200 else f"{source[:100]}...")
    if source.lower().startswith(("http://", "https://")):
        try:
            response = httpx.get(source, timeout=timeout, follow_redirects=True)
            response.raise_for_status()
        except Exception as error:  # the HTTP client's own errors, which are no OSError
            reason = str(error).partition("\n")[0]
            raise OSError(f"Image {shown} could not be fetched ({reason}); check address and connection.") from error
        return _decode(BytesIO(response.content), shown)
    if os.path.isdir(source):
        raise OSError(f"{shown} is a folder; expected an image file.")
    return _decode(source, shown)


def _decode(source: str | BytesIO, shown: str) -> Image.Image:
    try:
        image = Image.open(source)
        # Pillow itself only warns up to twice the limit, and the warning is lost in most programs.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image file {shown} not found; check the path.") from error
    except UnidentifiedImageError as error:
        raise OSError(f"{shown} is no image that can be read; expected a format Pillow knows.") from error
    except Image.DecompressionBombError as error:
        raise OSError(
            f"Image {shown} is too large: it has more pixels than allowed. The limit is "
            f"{Image.MAX_IMAGE_PIXELS:,} pixels; to read it all the same raise it, with PIL.Image.MAX_IMAGE_PIXELS = "
            "... or --max-pixels."
        ) from error
    except Exception as error:  # whatever Pillow's decoders raise on broken files
        raise OSError(f"Image {shown} could not be decoded ({error}); it may be truncated or damaged.") from error
    return image


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels; expected at least one.")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            # Pillow's own conversion to 8 bits cuts off at 255. "I" is how 16-bit files can arrive as well.
            array = np.asarray(image)
            return _array_to_rgb(array if image.mode == "F" else _as_uint16(array, name))
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise OSError(f"{name} could not be decoded ({error}); the file may be truncated or damaged.") from error


def _as_uint16(array: np.ndarray, name: str) -> np.ndarray:
    if array.min() < 0 or array.max() > 65535:
        raise ValueError(f"{name} has values from {array.min()} to {array.max()}; expected 16 bits, 0 to 65535.")
    return array.astype(np.uint16)


def _array_to_rgb(array: np.ndarray) -> Image.Image:
    found = _describe(array)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(
            f"Expected an array of shape (height, width), (height, width, channels) or (channels, height, width) with "
            f"1, 3 or 4 channels, found {found}."
        )
    if array.size == 0:
        raise ValueError(f"Expected an image with at least one pixel, found {found}.")

    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # whatever the byte order
        array = np.rint(array / 257.0).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"Expected 8-bit values 0 to 255, found {found} with values from {array.min()} to {array.max()}; "
                "16-bit images need the type uint16."
            )
        array = array.astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError(f"Expected finite pixel values, found NaN or infinity in a {found}.")
        if array.min() < -ROUNDING or array.max() > 1 + ROUNDING:
            raise ValueError(
                f"Expected floats in [0, 1], found {found} with values from {array.min():g} to {array.max():g}; "
                "convert 0 to 255 to uint8."
            )
        array = np.rint(array.clip(0, 1) * 255.0).astype(np.uint8)
    else:
        raise ValueError(f"Expected numbers, found {found}.")
    return Image.fromarray(np.ascontiguousarray(array[..., :3] if array.ndim == 3 else array)).convert("RGB")


def list_images(folder: str | os.PathLike) -> list[str]:
    """
    Paths of the image files directly in a folder, sorted by name; hidden ones are left out.

    Raises:
        ValueError: the folder has none.
    """
    with os.scandir(folder) as entries:
        files = sorted(entry.path for entry in entries if entry.is_file() and not entry.name.startswith("."))
    found = [path for path in files if os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS]
    if not found:
        raise ValueError(
            f"Folder {os.fspath(folder)!r} has no image files; expected files such as .png, .jpg or .tif directly in "
            "it."
        )
    return found


def load_mask(mask: Any) -> np.ndarray:
    """
    A mask as it is stored, one value a pixel.

    Args:
        mask (`str`, `os.PathLike`, `dict`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            File, image, or array with one channel, or an undecoded image of `datasets`. Colours and palettes count by
            their grey value.

    Returns:
        `np.ndarray` of shape `(height, width)`, in the type of the file or array.

    Raises:
        OSError: a file that cannot be read.
        ValueError: an array of another shape, or values that are not finite.
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
        raise ValueError(f"Expected finite mask values, found NaN or infinity in a {found}.")
    return mask


__all__ = ["DEFAULT_TIMEOUT", "IMAGE_EXTENSIONS", "list_images", "load_image", "load_mask"]
