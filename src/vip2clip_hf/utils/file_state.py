"""State of a file, to notice changes of its contents without reading it again."""

import hashlib
import os
import time
from typing import NamedTuple


# A file that changed this recently can change again without a new time stamp.
SETTLED_NS = 2_000_000_000
UNREADABLE = "unreadable"


class FileState(NamedTuple):
    """
    State of a file, to notice changes of its contents.

    A change of the contents always changes one of the time stamps on Linux and macOS, where `ctime_ns` cannot be set.

    Args:
        digest (`str`): hash of the contents, or a value that matches no other if the contents cannot be hashed.
        size (`int`): size in bytes.
        mtime_ns (`int`): time of the last change of the contents.
        ctime_ns (`int`): time of the last change of the file. 0 if the time stamps do not identify the contents.
        inode (`int`): number of the file on its file system.
    """

    digest: str
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0


def digest_of(content: bytes) -> str:
    """
    Hash the contents of a file.

    Args:
        content (`bytes`): the contents.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_file(path: str | os.PathLike) -> tuple[bytes, FileState]:
    """
    Read a file together with its state.

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        `tuple[bytes, FileState]`: the contents and their state.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        content = file.read()
        after = os.fstat(file.fileno())
    stable = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size, after.st_mtime_ns, after.st_ctime_ns,
    )  # fmt: skip
    # On Windows, ctime is the time of creation.
    settled = os.name == "posix" and stable and 0 < after.st_ctime_ns < time.time_ns() - SETTLED_NS
    state = FileState(
        digest_of(content), len(content), after.st_mtime_ns, after.st_ctime_ns if settled else 0, _inode(after)
    )
    return content, state


def is_unchanged(path: str | os.PathLike, state: FileState) -> bool:
    """
    Check whether a file has the contents of a state. It is read only if its time stamps or size differ.

    Args:
        path (`str` or `os.PathLike`): the file.
        state (`FileState`): state of an earlier file.

    Returns:
        `bool`: whether the contents are the same. A file that could not be read and still cannot be read is unchanged.
    """
    try:
        if state.digest == UNREADABLE:
            read_file(path)
            return False
        found = os.stat(path)
        if state.ctime_ns and (found.st_size, found.st_mtime_ns, found.st_ctime_ns, _inode(found)) == state[1:]:
            return True
        return found.st_size == state.size and read_file(path)[1].digest == state.digest
    except OSError:
        return state.digest == UNREADABLE


def _inode(found: os.stat_result) -> int:
    return found.st_ino & (2**63 - 1)  # fits into an int64 column


__all__ = ["UNREADABLE", "FileState", "digest_of", "is_unchanged", "read_file"]
