"""Read the bytes of an image from bytes, open files and texts, and choose its page."""

import base64
import binascii
import os
import re
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image

from .image_notices_vip2clip import notice


# Most bytes to read from an open file, or to decode from base64.
MAX_BYTES = 1 << 30
# Longest text that can be a path.
_LONGEST_PATH = 4096
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{16,}={0,2}\s*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")


def shorten(text: str) -> str:
    """
    Show a text in an error message.

    Args:
        text (`str`): the text.

    Returns:
        `str`: the text in quotes, shortened if it is long.
    """
    return repr(text if len(text) <= 200 else f"{text[:100]}...")


def content_of_text(text: str) -> bytes | str:
    """
    Decode a text that contains an image, or return the path or URL that it is.

    Args:
        text (`str`): a path, an http(s), file or data URL, or base64.

    Returns:
        `bytes` or `str`: content of a data URL or base64; otherwise a path or http(s) URL.

    Raises:
        OSError: if the URL has another scheme, or the content cannot be decoded.
    """
    start = text[:16].lower()
    if start.startswith(("http://", "https://")):
        return text
    if start.startswith("data:"):
        return _data_url(text)
    if start.startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise OSError(f"{shorten(text)} is on the host {parts.netloc!r}; expected a file of this machine.")
        return url2pathname(parts.path)
    if _SCHEME.match(text) and not os.path.exists(text[:_LONGEST_PATH]):
        raise OSError(f"{shorten(text)} is a URL of another kind; expected http, https, file or data, or a path.")
    if "\0" in text:
        raise OSError(f"{shorten(text)} contains a null character; expected a path, a URL or base64.")
    if len(text) > _LONGEST_PATH or (len(text) >= 64 and not os.path.lexists(text)):
        content = _base64(text) if _BASE64.fullmatch(text) else None
        if content is not None:
            return content
        if len(text) > _LONGEST_PATH:
            raise OSError(f"{shorten(text)} is too long for a path; expected a path, a URL or base64 of an image.")
    return text


def content_of_base64(text: str) -> bytes:
    """
    Decode a text that contains an image. Unlike [`content_of_text`], nothing else is accepted.

    Args:
        text (`str`): base64 or a data URL.

    Returns:
        `bytes`: the content.

    Raises:
        OSError: if the text is something else, such as a path or another URL, or is too long.
    """
    if text[:5].lower() == "data:":
        return _data_url(text)
    content = _base64(text) if _BASE64.fullmatch(text) else None
    if not content:
        raise OSError(f"{shorten(text)} is not base64; expected the whole file of an image as base64 or a data URL.")
    return content


def _data_url(text: str) -> bytes:
    header, comma, body = text.partition(",")
    if not comma:
        raise OSError(f"{shorten(text)} is not a data URL; expected data:image/png;base64,...")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    content = _base64(unquote_to_bytes(body).decode("ascii", "replace"))
    if not content:
        raise OSError(f"{shorten(text)} is not valid base64; expected data:image/png;base64,... with the whole image.")
    return content


def _base64(text: str) -> bytes | None:
    text = re.sub(r"\s", "", text).translate(str.maketrans("-_", "+/"))
    if len(text) > MAX_BYTES * 4 // 3:
        raise OSError(
            f"The base64 text has {len(text):,} characters; expected an image of at most {MAX_BYTES:,} bytes."
        )
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def content_of_file(file: Any) -> tuple[bytes, str]:
    """
    Read an open file from its start, and restore its position.

    Args:
        file: a file opened in binary mode, or an object with the same methods, such as `io.BytesIO`.

    Returns:
        `tuple[bytes, str]`: content, and name for messages.

    Raises:
        OSError: if the file is closed, opened as text, or too large.
    """
    name = getattr(file, "name", None)
    shown = repr(name) if isinstance(name, str) else f"<{type(file).__name__}>"
    try:
        seekable = getattr(file, "seekable", lambda: False)()
        position = file.tell() if seekable else None
        if seekable:
            file.seek(0)
        content = file.read(MAX_BYTES + 1)
        if seekable:
            file.seek(position)
    except ValueError as error:
        raise OSError(f"{shown} cannot be read ({error}); expected an open file.") from error
    if not isinstance(content, bytes):
        raise OSError(f"{shown} was opened as text; expected a file opened in binary mode, with open(path, 'rb').")
    if len(content) > MAX_BYTES:
        raise OSError(f"{shown} is too large; expected at most {MAX_BYTES:,} bytes.")
    return content, shown


def choose_page(image: Image.Image, shown: str, page: int | None) -> None:
    """
    Move an opened image to the page to read.

    A page is a page of a TIFF, or a frame of an animation. Without `page`, the largest one is read if it is the only
    one of its size, which is said once.

    Args:
        image (`PIL.Image.Image`): the opened image.
        shown (`str`): its name for messages.
        page (`int`, *optional*): number of the page, from 1.

    Raises:
        ValueError: if the file has no such page, or several pages of the largest size.
    """
    # The pages of a PSD are its layers. Pillow opens the whole picture.
    count = 1 if image.format == "PSD" else int(getattr(image, "n_frames", 1))
    if page is not None:
        if page > count:
            raise ValueError(f"{shown} has {count} page{'s' * (count > 1)}; expected page {page}.")
        if count > 1:
            image.seek(page - 1)
        return
    if count == 1:
        return
    at = image.tell()
    if at > 0:  # the caller chose it
        return
    if image.format in ("GIF", "WEBP", "PNG", "AVIF"):
        sizes = [image.size] * count
    else:
        sizes = []
        for number in range(count):
            image.seek(number)
            sizes.append(image.size)
    areas = [width * height for width, height in sizes]
    largest = areas.index(max(areas))
    if image.format in ("MPO", "HEIF"):  # phones: the first page is the photo, the others are previews or depth
        largest = at  # pillow-heif opens the one that the file names as the photo
        notice(f"The first page of {image.format} photos is read; the other pages are previews or other views.")
    elif areas.count(areas[largest]) > 1:
        width, height = sizes[largest]
        raise ValueError(
            f"{shown} has {count} pages, {areas.count(areas[largest])} of them with {width} x {height} pixels; "
            f"expected one photo. Choose a page from 1 to {count} with page (--page on the command line)."
        )
    else:
        notice("Some files have pages of different sizes. The largest page is read.")
    image.seek(largest)


__all__ = ["choose_page", "content_of_base64", "content_of_file", "content_of_text", "shorten"]
