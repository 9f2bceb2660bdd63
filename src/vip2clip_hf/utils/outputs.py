"""Protect the input of a command from its output."""

import os
from collections.abc import Iterable
from pathlib import Path

from .urls import is_below, is_remote


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """
    Whether a path, which need not exist, is a folder or lies below it.

    Links are followed, and folders are compared by their identity: this also holds on file systems that ignore case,
    and for folders that are mounted twice.

    Args:
        path (`str` or `os.PathLike`): the path.
        folder (`str` or `os.PathLike`): the folder.

    Returns:
        `bool`: True if the folder exists and the path is the same or inside.
    """
    try:
        found = os.stat(folder)
    except (OSError, ValueError):
        return False
    real = Path(os.path.realpath(path))
    for parent in (real, *real.parents):
        try:
            if os.path.samestat(os.stat(parent), found):
                return True
        except (OSError, ValueError):  # does not exist yet
            continue
    return False


def check_output(option: str, output: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """
    Check that an output is not an input and not inside one. There, it would be read as input the next time.

    Args:
        option (`str`): name of the output, for the message.
        output (`str` or `os.PathLike`): file or folder to write.
        inputs (`Iterable[str or os.PathLike]`): files and folders to read. Others, such as Hub ids, are skipped.

    Raises:
        OSError: if the output is an input, or inside one.
    """
    for one in inputs:
        text = os.fspath(one)
        remote = is_remote(text) and is_remote(os.fspath(output)) and is_below(os.fspath(output), text)
        if remote or is_inside(output, one):
            raise OSError(
                f"{option} {os.fspath(output)!r} is inside {os.fspath(one)!r}, which is read; expected a path outside "
                "of it."
            )


__all__ = ["check_output", "is_inside"]
