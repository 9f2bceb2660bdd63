"""Identify images by their contents, so results are only reused for the same pixels, not for the same names."""

import hashlib
import itertools
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image, ImageFile

from .file_state import UNREADABLE, FileState, digest_of, read_file


NUM_THREADS = 4
LONGEST_PATH = 4096
_NO_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://|data:|file:", re.IGNORECASE)


def read_image_bytes(image: Any) -> tuple[Any, FileState]:
    """
    Read the file of an image together with its state.

    Args:
        image (`str`, `os.PathLike` or `dict`): path, URL, or undecoded image of `datasets`.

    Returns:
        `tuple[Any, FileState]`: the image for `load_image`, and the state. If the file cannot be read, the image
        itself is returned, and `load_image` raises the error. The contents of a URL are unknown.
    """
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        if content is not None:
            return image, FileState(digest_of(content), len(content))
    else:
        path = image
    if path is None:  # a row without an image
        return image, FileState(UNREADABLE)
    if _NO_PATH.match(str(path)) or len(str(path)) > LONGEST_PATH:  # a URL or encoded image, read by load_image
        return image, FileState(f"unknown {uuid.uuid4().hex}")
    try:
        content, state = read_file(path)
    except OSError:
        return image, FileState(UNREADABLE)
    return {"bytes": content, "path": path}, state


def image_digests(images: Iterable[Any]) -> list[str | None]:
    """
    Hash the contents of images or masks.

    Args:
        images (`Iterable`): paths or undecoded images of `datasets`; `None` for a missing mask.

    Returns:
        `list[str | None]`: one hash per image. An image at a URL has another hash in each call.
    """

    def digest(image: Any) -> str | None:
        return None if image is None else read_image_bytes(image)[1].digest

    found: list[str | None] = []
    remaining = iter(images)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        # A few at a time, because images can be embedded in the dataset.
        while batch := list(itertools.islice(remaining, 8 * NUM_THREADS)):
            found += pool.map(digest, batch)
    return found


def decoding() -> str:
    """
    Describe which files can be decoded in this process, because an image that failed can be readable now.

    Returns:
        `str`: hash of the limit of pixels, the handling of truncated files, and the formats of Pillow and plug-ins.
    """
    content = [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, sorted(Image.registered_extensions())]
    return digest_of(repr(content).encode())[:8]


def digest_of_all(*columns: Iterable[Any]) -> str:
    """
    Hash a table.

    Args:
        columns (`Iterable`): columns of strings, numbers or `None`, all of the same length.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for row in zip(*columns, strict=True):
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


__all__ = ["decoding", "digest_of_all", "image_digests", "read_image_bytes"]
