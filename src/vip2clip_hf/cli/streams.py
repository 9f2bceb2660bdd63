"""Standard input and output of the command: any console, closed pipes and full disks."""

import contextlib
import errno
import os
import sys
from typing import Any


# Exit code after the reader of a pipe has closed it: what a shell reports for SIGPIPE.
CLOSED_PIPE = 141
# Windows reports a closed pipe as EINVAL.
_CLOSED = {errno.EPIPE, errno.EINVAL} if os.name == "nt" else {errno.EPIPE}


class PipeClosed(Exception):
    """The reader of the results has closed the pipe, as `head` does."""


class Interrupted(Exception):
    """The user pressed Ctrl+C."""


def prepare() -> None:
    """
    Make all characters printable, with backslash escapes for those that the console cannot show.

    Raises:
        OSError: if the standard output is closed, so results would be lost.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        raise OSError("The standard output is closed; expected a terminal, a pipe or a file for the results.")


def _failed(error: OSError) -> Exception:
    """Convert an error of the standard output."""
    if error.errno in _CLOSED:
        return PipeClosed()
    return OSError(f"The results could not be written to the standard output: {error.strerror or error}.")


def say(text: Any = "", end: str = "\n") -> None:
    """
    Print results to the standard output, now.

    Args:
        text: text, or an object to convert to text.
        end (`str`, defaults to a line break): printed after the text.

    Raises:
        PipeClosed: if the reader has closed the pipe.
        OSError: if the results cannot be written, for example because the disk is full.
    """
    from ..utils.text import encodable

    try:
        sys.stdout.write(encodable(f"{text}{end}"))
        sys.stdout.flush()
    except OSError as error:
        raise _failed(error) from error


def say_bytes(content: bytes) -> None:
    """
    Print bytes to the standard output, regardless of the encoding of the console.

    Args:
        content (`bytes`): UTF-8 text.

    Raises:
        PipeClosed, OSError: see [`say`].
    """
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # replaced by a program, such as a notebook
        return say(content.decode("utf-8"), end="")
    try:
        sys.stdout.flush()
        binary.write(content)
        binary.flush()
    except OSError as error:
        raise _failed(error) from error


def say_error(text: str) -> None:
    """
    Print a line to the standard error, if there is one.

    Args:
        text (`str`): the text. Line breaks are replaced by spaces.
    """
    from ..utils.text import encodable

    lines = (line.strip() for line in text.splitlines())
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or absent
        sys.stderr.write(encodable(" ".join(filter(None, lines))) + "\n")
        sys.stderr.flush()


def finish(code: int) -> int:
    """
    Write what is left in the buffer, before the interpreter does, which would ignore the error.

    Args:
        code (`int`): exit code so far.

    Returns:
        `int`: exit code: another one if the results could not be written.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        failed = _failed(error) if isinstance(error, OSError) else OSError(f"{error}.")
        discard()
        if isinstance(failed, PipeClosed):
            return code or CLOSED_PIPE
        if code in (0, 3):
            say_error(f"Error: {failed}")
        return code if code not in (0, 3) else 1
    return code


def discard() -> None:
    """Throw away what is left in the buffer of the standard output, which cannot be written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def read_paths() -> list[str]:
    """
    Read a list of paths from the standard input: one per line, or separated by NUL as `find -print0` does.

    Returns:
        `list[str]`: the paths; empty lines are skipped. Bytes that are not UTF-8 are kept, as in file names.
    """
    stream = getattr(sys.stdin, "buffer", None)
    content = stream.read() if stream is not None else os.fsencode(sys.stdin.read() if sys.stdin is not None else "")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # written by > in PowerShell
        content = content.decode("utf-16", "replace").encode()
    if b"\0" in content:
        names = content.split(b"\0")
    else:
        content = content.removeprefix(b"\xef\xbb\xbf")  # written by some programs on Windows
        names = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    return [os.fsdecode(name) for name in names if name.strip()]


__all__ = [
    "CLOSED_PIPE",
    "Interrupted",
    "PipeClosed",
    "discard",
    "finish",
    "prepare",
    "read_paths",
    "say",
    "say_bytes",
    "say_error",
]
