"""Write files and folders atomically: complete or not at all."""

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from .text import encodable


def umask() -> int:
    """
    Get the umask of this process.

    Returns:
        `int`: the permission bits that new files do not get.
    """
    # There is no call that only reads it.
    current = os.umask(0)
    os.umask(current)
    return current


def apply_umask(folder: Path) -> None:
    """
    Give the files of a folder the permissions of new files. Some libraries write files that only their owner can read.

    Args:
        folder (`pathlib.Path`): the folder. Its subfolders are not changed.
    """
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask())


def check_new_folder(target: str | os.PathLike) -> None:
    """
    Check that a folder can be created at a path.

    Args:
        target (`str` or `os.PathLike`): path that must not exist, or an empty folder.

    Raises:
        OSError: if the path is a file or a folder that is not empty.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OSError(f"{str(target)!r} exists and is not empty; expected a new folder.")


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[Path]:
    """
    Yield a temporary folder that is renamed to `target` at the end of the `with` block, or deleted after an error.

    Args:
        target (`str` or `os.PathLike`): path that must not exist, or an empty folder.

    Yields:
        `pathlib.Path`: the temporary folder, next to `target`.

    Raises:
        OSError: if `target` is a file or a folder that is not empty.
    """
    check_new_folder(target)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = temporary_folder(target.parent, target)
    try:
        yield staged
        staged.chmod(0o777 & ~umask())  # mkdtemp creates private folders
        if target.exists():
            target.rmdir()
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def temporary_folder(parent: Path, target: Path) -> Path:
    """
    Create a folder for files that are renamed to `target` when they are complete.

    Args:
        parent (`pathlib.Path`): existing folder, on the disk of `target`.
        target (`pathlib.Path`): the folder that the user knows, for the message of an error.

    Returns:
        `pathlib.Path`: the new folder, readable by this user only.

    Raises:
        OSError: if it cannot be created. The message names `target`.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=".vip2clip-", dir=parent))
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


def name_of(checkpoint: str | os.PathLike) -> str:
    """
    Return the default name of a checkpoint in results.

    Args:
        checkpoint (`str` or `os.PathLike`): folder or Hub id.

    Returns:
        `str`: name of the folder without its parents, or the Hub id.
    """
    path = Path(checkpoint)
    return path.resolve().name if path.exists() else str(checkpoint)


def write_atomically(path: Path, content: str | bytes) -> None:
    """
    Write a file that is complete or not changed at all, also after a power failure.

    Args:
        path (`pathlib.Path`): file to write; an existing file is replaced.
        content (`str` or `bytes`): text is encoded as UTF-8, see [`encodable`].

    Raises:
        OSError: if the file cannot be written.
    """
    # Different for each program, so two of them cannot take the file of the other.
    staged = path.with_name(f".{uuid.uuid4().hex[:12]}.vip2clip-tmp")
    try:
        with open(staged, "wb") as file:
            file.write(content if isinstance(content, bytes) else encodable(content).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException as error:
        staged.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            # The name that the user knows, instead of the temporary one. The class follows from the number.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def file_names(names: Sequence[str]) -> dict[str, str]:
    """
    Choose a safe file name for each name. Different names get different file names, also ignoring case.

    Args:
        names (`Sequence[str]`): the names, without duplicates.

    Returns:
        `dict[str, str]`: file name by name: word characters, `.`, `-` and `_` only, without a path.
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^\w.-]+", "_", name).strip(".")[:100] or "_"
        candidate, number = base, 1
        while candidate.lower() in taken:  # some file systems ignore case
            number += 1
            candidate = f"{base}-{number}"
        taken.add(candidate.lower())
        chosen[name] = candidate
    return chosen


__all__ = [
    "apply_umask",
    "check_new_folder",
    "file_names",
    "name_of",
    "new_folder",
    "temporary_folder",
    "umask",
    "write_atomically",
]
