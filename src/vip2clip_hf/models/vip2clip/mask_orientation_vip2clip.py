"""Size and EXIF orientation of images, without decoding them, to compare masks with images."""

import os
import warnings
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from .image_loading_vip2clip import DEFAULT_TIMEOUT, _open, load_image


ORIENTATION = 0x0112
REMOTE = ("http://", "https://", "file://", "data:")


def as_undecoded(source: Any) -> Any:
    """
    Convert the content of an image file to the form of an undecoded image of `datasets`.

    Args:
        source: bytes, a binary file, or anything else.

    Returns:
        `dict` with the content of bytes or of a file, which is read from its position and set back; otherwise
        `source`.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(source), "path": None}
    if hasattr(source, "read") and hasattr(source, "seek"):
        position = source.tell()
        content = source.read()
        source.seek(position)
        name = getattr(source, "name", None)
        return {"bytes": content, "path": name if isinstance(name, str) else None}
    return source


def read_header(image: Any) -> tuple[tuple[int, int], tuple[int, int], int] | None:
    """
    Read the size and the EXIF orientation of an image without decoding it.

    Args:
        image: the image, see [`load_image`].

    Returns:
        `tuple[tuple[int, int], tuple[int, int], int]`: height and width as stored, height and width of the upright
        image, and the orientation from 1 to 8. `None` for arrays, and for files that cannot be opened: their errors
        are raised where they are decoded.
    """
    image = as_undecoded(image)
    try:
        if isinstance(image, str) and image.lower().startswith(REMOTE):
            image = _open(image, DEFAULT_TIMEOUT)
        if isinstance(image, Image.Image):
            return _sizes(image, image.getexif().get(ORIENTATION))
        if isinstance(image, dict):
            image = image["path"] if image.get("bytes") is None else BytesIO(image["bytes"])
        if not isinstance(image, (str, os.PathLike, BytesIO)):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(image) as opened:
                return _sizes(opened, _stored_orientation(opened, image))
    except Exception:  # the error is raised where the image is decoded
        return None


def _stored_orientation(opened: Image.Image, source: Any) -> int | None:
    """Return the EXIF orientation. Pillow would decode every PNG image to find tags behind its pixels."""
    known = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"} & opened.info.keys()
    if opened.format == "PNG" and not known:
        if isinstance(source, BytesIO):
            source.seek(0)
            has_tags = _has_tags(source)
        else:
            with open(source, "rb") as file:
                has_tags = _has_tags(file)
        if not has_tags:
            return None
    return opened.getexif().get(ORIENTATION)


def _has_tags(file: Any) -> bool:
    """Return whether a PNG file contains text or EXIF, from the heads of its chunks."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        if head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            return True
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def _sizes(image: Image.Image, tag: Any) -> tuple[tuple[int, int], tuple[int, int], int]:
    orientation = tag if tag in range(2, 9) else 1
    # Pillow gives the upright size of a TIFF file that is not loaded yet, and the size of the tile as stored.
    width, height = getattr(image, "_tile_size", image.size) if orientation > 1 else image.size
    stored = (height, width)
    return stored, stored[::-1] if orientation > 4 else stored, orientation


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """
    Apply an EXIF orientation.

    Args:
        array (`np.ndarray` of shape `(height, width)`): stored pixels.
        orientation (`int`): EXIF orientation, from 2 to 8.

    Returns:
        `np.ndarray`: the upright pixels, a view.
    """
    return {
        2: lambda: array[:, ::-1],
        3: lambda: array[::-1, ::-1],
        4: lambda: array[::-1],
        5: lambda: array.T,
        6: lambda: np.rot90(array, -1),
        7: lambda: array[::-1, ::-1].T,
        8: lambda: np.rot90(array),
    }[orientation]()


def upright_size(image: Any) -> tuple[int, int]:
    """
    Height and width of an image, after its EXIF orientation is applied.

    Args:
        image: the image, see [`load_image`].

    Returns:
        `tuple[int, int]`: height and width.

    Raises:
        OSError, ValueError: see [`load_image`], if the image must be decoded and cannot be.
    """
    header = read_header(image)
    if header is not None:
        return header[1]
    loaded = load_image(image)
    return loaded.height, loaded.width


__all__ = ["ORIENTATION", "as_undecoded", "read_header", "turn", "upright_size"]
