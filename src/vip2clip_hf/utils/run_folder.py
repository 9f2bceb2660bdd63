"""Output folder of a run: a manifest of the files it wrote, and a lock."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from .files import write_atomically
from .serialization import to_json


MANIFEST_FILE = ".vip2clip.json"
PROGRESS_FOLDER = ".progress"
WRITTEN_BY = "vip2clip_hf"
# How messages name what is in a folder, and what a program does that writes to it.
ARTICLES = {
    "evaluation": "an evaluation",
    "prediction": "a prediction",
    "watch": "the results of a watched folder",
}
DOING = {"evaluation": "evaluating", "prediction": "predicting", "watch": "watching a folder and writing"}


class RunFolder:
    """
    Output folder of an evaluation or prediction.

    The manifest lists the files that runs of this package wrote to the folder. Only these are replaced or deleted.
    A file is listed before it is written, so an interruption leaves no unlisted file.

    Args:
        path (`pathlib.Path`): the folder. It need not exist.
        kind (`str`): kind of the run, `"evaluation"`, `"prediction"` or `"watch"`.
        title (`str`, *optional*): name of the folder in messages. Defaults to the path.
    """

    def __init__(self, path: Path, kind: str, title: str | None = None) -> None:
        self.path, self.kind, self.title = path, kind, title or str(path)
        self.files: set[str] = set()
        self._lock: FileLock | None = None

    def check(self, known: Iterable[str] = ()) -> bool:
        """
        Check that a run can be written to the folder, and read its manifest.

        Args:
            known (`Iterable[str]`): files of a folder without a manifest that belong to a run of an earlier version.

        Returns:
            `bool`: whether the folder contains a run of this kind. `False` if it is new or empty.

        Raises:
            OSError: if the path is a file, or the folder contains other files and no run of this kind.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OSError(f"{self.title!r} is a file; expected a folder or a path that does not exist.")
        if not self.path.exists() or not any(self.path.iterdir()):
            return False
        found = self._read()
        if found is None:
            entries = {entry.name for entry in self.path.iterdir()}
            if entries <= {PROGRESS_FOLDER} or all(name.endswith(".vip2clip-tmp") for name in entries):
                return False  # killed before the manifest was written
            self.files = {name for name in known if (self.path / name).exists()}
            if self.files:
                return True
        if found is None or found.get("kind") not in ARTICLES:
            raise OSError(
                f"{self.title!r} is not empty and does not contain {ARTICLES[self.kind]}; expected a new folder, "
                f"or the folder of {ARTICLES[self.kind]}."
            )
        self.check_kind(found["kind"])
        self.files = {str(name) for name in found.get("files", [])}
        return True

    def check_kind(self, kind: str) -> None:
        """
        Check the kind of the run in the folder.

        Args:
            kind (`str`): kind found in the folder.

        Raises:
            OSError: if it is another kind of run.
        """
        if kind != self.kind:
            raise OSError(
                f"{self.title!r} contains {ARTICLES[kind]}, not {ARTICLES[self.kind]}; choose another folder."
            )

    def lock(self) -> None:
        """
        Create the folder and its manifest, and lock the folder until [`RunFolder.release`] or the end of the process.

        Raises:
            OSError: if another program is writing to the folder.
        """
        progress = self.path / PROGRESS_FOLDER
        progress.mkdir(parents=True, exist_ok=True)
        lock = FileLock(progress / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(
                f"Another program is {DOING[self.kind]} into {self.title!r}; wait until it has finished, or choose "
                "another folder."
            ) from error
        self._lock = lock
        if (found := self._read()) is not None:  # another program can have changed it since `check`
            self.files = {str(name) for name in found.get("files", [])}
        self._write()
        for folder in (self.path, *(path for path in progress.rglob("*") if path.is_dir()), progress):
            for staged in folder.glob(".*.vip2clip-tmp"):  # left by a killed program
                staged.unlink()

    def release(self) -> None:
        """Release the lock, if any, and remove the folder for the progress if it contains only the lock."""
        if self._lock is None:
            return
        progress = self.path / PROGRESS_FOLDER
        with contextlib.suppress(OSError):  # contains more; on Windows, the open lock cannot be deleted
            if {entry.name for entry in progress.iterdir()} <= {"lock"}:
                (progress / "lock").unlink(missing_ok=True)  # before the release: no other program can hold it
                progress.rmdir()
        self._lock.release()
        self._lock = None

    def claim(self, names: Iterable[str]) -> None:
        """
        List files before they are written.

        Args:
            names (`Iterable[str]`): paths below the folder, with forward slashes.

        Raises:
            OSError: if one of the files exists and was not written by a run.
        """
        names = set(names)
        self.check_foreign(names)
        if not names <= self.files:
            self.files |= names
            self._write()

    def check_foreign(self, names: Iterable[str]) -> None:
        """
        Check that no file of the user would be replaced.

        Args:
            names (`Iterable[str]`): paths below the folder, with forward slashes.

        Raises:
            OSError: if one of the files exists and was not written by a run.
        """
        foreign = sorted(name for name in set(names) - self.files if os.path.lexists(self.path / name))
        if foreign:
            raise OSError(
                f"{str(self.path / foreign[0])!r} exists and was not written by a run; move or delete it, or choose "
                "another folder."
            )

    def delete(self, names: Iterable[str]) -> None:
        """
        Delete files of the manifest, and folders that are empty then. Other files are kept.

        Args:
            names (`Iterable[str]`): paths below the folder, with forward slashes.
        """
        names = self.files & set(names)
        for name in sorted(names):
            (self.path / name).unlink(missing_ok=True)
            for parent in (self.path / name).parents:
                if parent == self.path or not parent.is_relative_to(self.path):
                    break
                with contextlib.suppress(OSError):  # absent, or contains other files
                    parent.rmdir()
        if names:
            self.files -= names
            self._write()

    def others(self) -> list[str]:
        """
        List the files that no run wrote.

        Returns:
            `list[str]`: sorted paths below the folder, with forward slashes, without the progress.
        """
        found = [name for name in files_below(self.path) if not name.startswith(f"{PROGRESS_FOLDER}/")]
        return sorted(set(found) - self.files - {MANIFEST_FILE})

    def _read(self) -> dict | None:
        try:
            found = json.loads((self.path / MANIFEST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("written_by") == WRITTEN_BY else None

    def _write(self) -> None:
        content = {"written_by": WRITTEN_BY, "kind": self.kind, "files": sorted(self.files)}
        write_atomically(self.path / MANIFEST_FILE, to_json(content))


def files_below(folder: Path) -> list[str]:
    """
    List the files in a folder and its subfolders.

    Args:
        folder (`pathlib.Path`): the folder. It need not exist.

    Returns:
        `list[str]`: sorted paths below the folder, with forward slashes.
    """
    found = []
    for path, _, files in os.walk(folder):
        relative = Path(path).relative_to(folder)
        found += [(relative / file).as_posix() for file in files]
    return sorted(found)


__all__ = ["MANIFEST_FILE", "PROGRESS_FOLDER", "RunFolder", "files_below"]
