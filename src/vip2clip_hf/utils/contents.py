"""Identify images by their contents, so results are only reused for the same pixels, not for the same names."""

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .file_state import UNREADABLE, FileState, digest_of, read_file


NUM_THREADS = 4


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
    if path is None or str(path).lower().startswith(("http://", "https://")):
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
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(lambda image: None if image is None else read_image_bytes(image)[1].digest, images))


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


__all__ = ["digest_of_all", "image_digests", "read_image_bytes"]
