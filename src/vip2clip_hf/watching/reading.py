"""Read a photo that another program has written: whether it is complete, and its contents."""

import os
from typing import NamedTuple

from ..utils.file_state import digest_of
from .candidates import Signature, signature_of


# So many zeros at the end of a compressed file are space that was reserved for it, and is not filled yet.
_RESERVED = bytes(16)
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82"}


class Contents(NamedTuple):
    """
    Contents of a file.

    Args:
        data (`bytes`): the contents.
        digest (`str`): their hash.
        signature ([`Signature`]): signature of the file after reading.
    """

    data: bytes
    digest: str
    signature: Signature


def read_contents(path: str) -> Contents:
    """
    Read a file.

    Args:
        path (`str`): the file.

    Returns:
        [`Contents`]: its contents and its signature, which differs from an earlier one if the file was changed or
        replaced while it was read.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    # Of the path, as all other signatures: on some file systems, that of an opened file differs.
    return Contents(data, digest_of(data), signature_of(os.stat(path)))


def is_partly_filled(data: bytes) -> bool:
    """
    Whether a JPEG or PNG file ends with zeros instead of its end. Programs that copy files can reserve the whole size
    first; a decoder may show the missing part in gray, without an error.

    Args:
        data (`bytes`): contents of a file.

    Returns:
        `bool`: True if the end is missing. False for other formats.
    """
    if not data.endswith(_RESERVED):
        return False
    return any(data.startswith(start) and not data.rstrip(b"\0").endswith(end) for start, end in _ENDS.items())


__all__ = ["Contents", "is_partly_filled", "read_contents"]
