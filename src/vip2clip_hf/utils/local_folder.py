"""A local folder with the methods of a folder in a store."""

import os
import time
from collections.abc import Iterator
from typing import Any

from .file_state import SETTLED_NS
from .remote import Entry, version_number


class LocalFolder:
    """
    A folder of this machine, read like a [`RemoteFolder`].

    Args:
        path (`str`): the folder.
    """

    scheme = "file"

    def __init__(self, path: str) -> None:
        self.url = os.path.realpath(path)

    def path(self, name: str) -> str:
        """Path of a file below the folder."""
        return os.path.join(self.url, *name.split("/")) if name else self.url

    def kind(self, name: str = "") -> str | None:
        """Tell what is at a path, see [`RemoteFolder.kind`]."""
        path = self.path(name)
        return "directory" if os.path.isdir(path) else "file" if os.path.exists(path) else None

    def state(self, name: str) -> tuple[int, int]:
        """Get size and version of a file, see [`RemoteFolder.state`]. A file that has just changed has version 0."""
        found = os.stat(self.path(name))
        if os.name != "posix" or found.st_ctime_ns > time.time_ns() - SETTLED_NS:
            return found.st_size, 0
        state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        return found.st_size, version_number(state)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a file or a part of it, see [`RemoteFolder.read`]."""
        with open(self.path(name), "rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))

    def open(self, name: str, block_size: int) -> Any:
        """Open a file."""
        return open(self.path(name), "rb")

    def walk(self, folder: str = "") -> Iterator[tuple[str, Entry]]:
        """List all files in the folder and its subfolders, see [`RemoteFolder.walk`]. Links to folders are skipped."""
        with os.scandir(self.path(folder)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self.walk(name)
            elif entry.is_file():
                yield name, Entry(entry.name, False, entry.stat().st_size, 0)


__all__ = ["LocalFolder"]
