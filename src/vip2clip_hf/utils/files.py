"""Writing so that nothing half-written is left behind."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


def umask() -> int:
    """Permissions that new files do not get. Reading it means setting it."""
    current = os.umask(0)
    os.umask(current)
    return current


def check_new_folder(target: str | os.PathLike):
    """
    Raises:
        OSError: it is a file, or a folder that is not empty.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OSError(f"{str(target)!r} exists and is not empty; expected a new folder.")


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to write to that becomes `target` when the block ends well, and vanishes when it does not.

    Args:
        target (`str` or `os.PathLike`): must be empty or not exist.

    Raises:
        OSError: it is a file, or not empty.
    """
    check_new_folder(target)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".vip2clip-", dir=target.parent))
    try:
        yield staged
        staged.chmod(0o777 & ~umask())  # mkdtemp makes folders private
        if target.exists():
            target.rmdir()
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes):
    """Text or bytes to a file that is never half-written."""
    staged = path.with_name(f".{path.name}.tmp")
    try:
        staged.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name for every name, different ones for different names, without anything that could lead elsewhere."""
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^\w.-]+", "_", name).strip(".")[:100] or "_"
        candidate, number = base, 1
        while candidate.lower() in taken:  # also where case does not tell files apart
            number += 1
            candidate = f"{base}-{number}"
        taken.add(candidate.lower())
        chosen[name] = candidate
    return chosen


__all__ = ["check_new_folder", "file_names", "new_folder", "umask", "write_atomically"]
