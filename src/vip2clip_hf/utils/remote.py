"""Folders in object stores and on other file systems, such as `s3://bucket/photos`, through fsspec.

An object is written as a whole: a reader finds the earlier object, the new one, or none. There is no rename.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .extras import extra
from .urls import join_url


# Packages by the scheme of the URL, for the error message. They are part of the extra `cloud`.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
# Fields of a listing that change with the contents of an object. Which of them exist depends on the store.
_VERSION = (
    "ETag", "etag", "VersionId", "generation", "md5Hash", "blob_id", "content_settings", "LastModified", "updated",
    "last_modified", "mtime", "created",
)  # fmt: skip
ATTEMPTS, FIRST_PAUSE = 4, 0.5


class StoreError(RuntimeError):
    """A store cannot be reached or refuses access. Unlike the error of one object, it ends a run, which can resume."""


class Entry(NamedTuple):
    """
    Object or folder in a listing.

    Args:
        name (`str`): name without the path.
        is_folder (`bool`): whether it is a folder.
        size (`int`): size of an object in bytes.
        version (`int`): number that changes with the contents, below 2**63. 0 if the store does not tell.
    """

    name: str
    is_folder: bool
    size: int
    version: int


class RemoteFolder:
    """
    A folder in a store.

    Objects can be pickled. Each process connects on first use, with the settings of its environment (such as
    `AWS_ENDPOINT_URL` and the files in `~/.aws` for S3).

    Args:
        url (`str`): URL of the folder.

    Raises:
        ImportError: if the package for this kind of store is not installed.
        ValueError: if the kind of store is not known.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if not url.endswith("://") else url
        self.scheme = url.partition("://")[0].lower()
        self._connect()

    def _connect(self) -> tuple[Any, str]:
        """The file system, which fsspec keeps per process and thread, and the path in it."""
        with extra("cloud", f"A path that starts with {self.scheme}://"):
            import fsspec

            try:
                file_system, path = fsspec.url_to_fs(self.url)
            except ImportError as error:
                package = PACKAGES.get(self.scheme, self.scheme)
                raise ModuleNotFoundError(f"No module named {package!r}", name=package) from error
            except ValueError as error:
                known = ", ".join(f"{scheme}://" for scheme in ("s3", "gs", "hf", "memory"))
                raise ValueError(f"{self.url!r} cannot be opened ({error}); expected for example {known}.") from error
        return file_system, path.rstrip("/")

    def path(self, name: str) -> str:
        """Path of an object in the file system of fsspec."""
        root = self._connect()[1]
        return f"{root}/{name}" if name else root

    def _forget(self, name: str) -> str:
        """Path of an object, after the listings that fsspec has kept are deleted."""
        path = self.path(name)
        with contextlib.suppress(Exception):
            self._connect()[0].invalidate_cache(path)
        return path

    def _retry(self, name: str, function: Any, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system. Errors of the connection are tried again, then a [`StoreError`]."""
        attempt = 0
        while True:
            try:
                return getattr(self._connect()[0], function)(*arguments, **options)
            except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, ImportError):
                raise
            except Exception as error:
                attempt += 1
                if isinstance(error, PermissionError) or attempt == ATTEMPTS:
                    text = str(error) or type(error).__name__
                    raise StoreError(f"{join_url(self.url, name)!r} cannot be accessed ({text}).") from error
            time.sleep(FIRST_PAUSE * 2**attempt)

    def entries(self, folder: str = "") -> list[Entry]:
        """
        List a folder, without its subfolders.

        Args:
            folder (`str`): path below the root, without a slash at the end.

        Returns:
            `list[Entry]`: its entries, sorted by name. A folder whose name is not allowed in a path has the name `""`.

        Raises:
            FileNotFoundError: if there is no such folder.
            StoreError: if the store cannot be reached, or refuses access.
        """
        path = self._forget(folder)
        found = []
        for entry in self._retry(folder, "ls", path, detail=True):
            is_folder = entry["type"] == "directory"
            full = entry["name"]
            if full.rstrip("/") == path.rstrip("/"):
                # An object that stands for the folder, or a part of the key that is empty.
                if not full.endswith("/") or not is_folder or "ETag" in entry or not path:
                    continue
                found.append(Entry("", True, 0, 0))
                continue
            name = full.rstrip("/").rpartition("/")[2]
            found.append(Entry(name, is_folder, int(entry.get("size") or 0), version_of(entry)))
        return sorted(found)

    def kind(self, name: str = "") -> str | None:
        """
        Tell what is at a path.

        Args:
            name (`str`): path below the root.

        Returns:
            `str`: `"file"` or `"directory"`; None if there is nothing.

        Raises:
            StoreError: if the store cannot be reached, or refuses access.
        """
        path = self._forget(name)
        try:
            return str(self._retry(name, "info", path)["type"])
        except FileNotFoundError:
            return None

    def state(self, name: str) -> tuple[int, int]:
        """
        Get size and version of an object.

        Args:
            name (`str`): path below the root.

        Returns:
            `tuple[int, int]`: size in bytes and version, see [`Entry`].

        Raises:
            FileNotFoundError: if there is no such object.
            StoreError: if the store cannot be reached, or refuses access.
        """
        path = self._forget(name)
        found = self._retry(name, "info", path)
        return int(found.get("size") or 0), version_of(found)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """
        Read an object, or a part of it.

        Args:
            name (`str`): path below the root.
            start, end (`int`, *optional*): first byte, and the byte after the last one.

        Returns:
            `bytes`: the contents.

        Raises:
            FileNotFoundError: if there is no such object.
            StoreError: if the store cannot be reached, or refuses access.
        """
        options: dict[str, Any] = {} if start is None and end is None else {"start": start, "end": end}
        if not options and self.scheme in ("s3", "s3a"):
            options["max_concurrency"] = 1  # otherwise, s3fs asks for the size first, with a request of its own
        return bytes(self._retry(name, "cat_file", self.path(name), **options))

    def open(self, name: str, block_size: int) -> Any:
        """Open an object to read parts of it in order, with requests of `block_size` bytes."""
        return self._retry(name, "open", self.path(name), "rb", block_size=block_size, cache_type="readahead")

    def write(self, name: str, content: bytes | Path) -> None:
        """
        Write an object. An existing one is replaced at the end.

        Args:
            name (`str`): path below the root.
            content (`bytes` or `pathlib.Path`): the contents, or a local file with them.

        Raises:
            StoreError: if the object cannot be written.
        """
        path = self.path(name)
        if self.scheme == "memory":  # the only one with folders
            self._connect()[0].makedirs(path.rpartition("/")[0], exist_ok=True)
        if isinstance(content, Path):
            self._retry(name, "put_file", str(content), path)
        else:
            self._retry(name, "pipe_file", path, content)

    def create(self, name: str, content: bytes) -> bool:
        """
        Write an object that must not exist. S3 and Google Cloud Storage check this at the same time as they write.

        Args:
            name (`str`): path below the root.
            content (`bytes`): the contents.

        Returns:
            `bool`: False if the object exists.

        Raises:
            StoreError: if the object cannot be written.
        """
        if self.kind(name) is not None:
            return False
        path = self.path(name)
        if self.scheme not in ("s3", "s3a", "gs", "gcs", "memory"):
            self._retry(name, "pipe_file", path, content)
            return True
        if self.scheme == "memory":
            self._connect()[0].makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._retry(name, "pipe_file", path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """
        Delete an object, if it exists.

        Args:
            name (`str`): path below the root.

        Raises:
            StoreError: if the object cannot be deleted.
        """
        with contextlib.suppress(FileNotFoundError):
            self._retry(name, "rm_file", self.path(name))

    def download(self, name: str, target: Path) -> None:
        """
        Copy an object to a local file, which is complete or does not exist.

        Args:
            name (`str`): path below the root.
            target (`pathlib.Path`): the file.

        Raises:
            FileNotFoundError: if there is no such object.
            StoreError: if the store cannot be reached, or refuses access.
        """
        staged = target.with_name(f".{target.name[:100]}.{os.getpid()}.vip2clip-tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._retry(name, "get_file", self.path(name), str(staged))
            os.replace(staged, target)
        finally:
            staged.unlink(missing_ok=True)

    def walk(self, folder: str = "") -> Iterator[tuple[str, Entry]]:
        """
        List all objects in a folder and its subfolders.

        Args:
            folder (`str`): path below the root.

        Yields:
            `tuple[str, Entry]`: path below the root, and the entry. Folders whose names are not allowed in a path are
            yielded as folders and not entered.
        """
        for entry in self.entries(folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_folder and entry.name not in ("", ".", ".."):
                yield from self.walk(name)
            else:
                yield name, entry


def version_of(entry: dict[str, Any]) -> int:
    """
    Condense what a listing tells about the version of an object.

    Args:
        entry (`dict[str, Any]`): details of the object, as of fsspec.

    Returns:
        `int`: number below 2**63 that changes with the contents; 0 if the listing has no such field.
    """
    found = {name: str(entry[name]) for name in _VERSION if entry.get(name) is not None}
    if not found:
        return 0
    return version_number((int(entry.get("size") or 0), sorted(found.items())))


def version_number(state: tuple[Any, ...]) -> int:
    """
    Condense the state of a file or object.

    Args:
        state (`tuple`): what changes with the contents.

    Returns:
        `int`: number from 1, below 2**63.
    """
    return int.from_bytes(hashlib.blake2b(repr(state).encode(), digest_size=8).digest(), "big") >> 1 or 1


__all__ = ["Entry", "RemoteFolder", "StoreError", "version_number", "version_of"]
