"""Results of a reproduction on disk. Each has the hash of its settings as name, so other settings never mix."""

import shutil
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..evaluation.set_key import read_json
from ..training.run_record import RECORD_FILE
from ..utils.files import write_atomically
from ..utils.hardware import cpu_model, num_cores
from ..utils.serialization import to_json, without_nan
from ..utils.versions import versions


MARKER = "reproduction.json"
DONE = "done.json"
# Marks a training with half the batch, so that it resumes in the same way.
HALVED = ".halved"


class Store:
    """
    Folder of a reproduction.

    - `trained/HASH/`: adapters of a training, `done.json` when it is finished
    - `results/HASH.json`: result of an evaluation
    - `efficiency/HASH.json`: measurement of Table 3
    - `progress/HASH/`: scores of an evaluation that is not finished

    Args:
        folder (`pathlib.Path`): the folder. It must be new or empty, or contain a reproduction.

    Raises:
        OSError: if the folder contains something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise OSError(f"{str(folder)!r} is a file; expected a folder or a path that does not exist.")
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise OSError(
                f"{str(folder)!r} is not empty and does not contain a reproduction; expected a new folder, or that of "
                "a reproduction."
            )

    def begin(self) -> None:
        """Create the folder and its marker."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MARKER).exists():
            write_atomically(self.folder / MARKER, to_json({"written_by": "vip2clip reproduce"}))

    def training_folder(self, digest: str) -> Path:
        """Return the folder of a training."""
        return self.folder / "trained" / digest

    def progress_folder(self, digest: str) -> Path:
        """Return the folder of an evaluation that is not finished."""
        return self.folder / "progress" / digest

    def training(self, digest: str) -> dict[str, Any] | None:
        """Return the record of a finished training."""
        found = read_json(self.training_folder(digest) / DONE)
        complete = found is not None and all(
            _size(self.training_folder(digest) / name) == size for name, size in dict(found.get("files", {})).items()
        )
        return found if complete else None

    def begin_training(self, digest: str, halved: bool) -> bool:
        """
        Prepare the folder of a training. Its checkpoints are kept to resume from; other files of an interrupted
        training are removed.

        Args:
            digest (`str`): hash of the settings.
            halved (`bool`): whether to halve the batch. Checkpoints with other batches are then removed too.

        Returns:
            `bool`: whether the batch is halved, also by an earlier run.
        """
        folder = self.training_folder(digest)
        if halved and not (folder / HALVED).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / HALVED).touch()
        resumes = any(folder.glob("checkpoint-*"))
        for path in folder.iterdir() if folder.exists() else ():
            if path.name == HALVED or (resumes and (path.name == RECORD_FILE or path.name.startswith("checkpoint-"))):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return (folder / HALVED).exists()

    def finish_training(self, digest: str, record: dict[str, Any]) -> None:
        """Record a finished training. Its checkpoints are deleted."""
        folder = self.training_folder(digest)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
        checked = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _CHECKED)
        files = {path.name: _size(path) for path in checked}  # a damaged file is trained again
        write_atomically(folder / DONE, to_json({**record, **provenance(), "files": files}))

    def result(self, digest: str, kind: str = "results") -> dict[str, Any] | None:
        """Return the result of a finished evaluation, or another kind of result."""
        return read_json(self.folder / kind / f"{digest}.json")

    def finish_result(self, digest: str, result: dict[str, Any], kind: str = "results") -> None:
        """Write the result of an evaluation, or another kind of result."""
        (self.folder / kind).mkdir(exist_ok=True)
        write_atomically(self.folder / kind / f"{digest}.json", to_json(without_nan({**result, **provenance()})))
        shutil.rmtree(self.progress_folder(digest), ignore_errors=True)

    def others(self, trainings: set[str], results: set[str]) -> int:
        """Count the results of other settings. They are kept."""
        found = {path.stem for path in (self.folder / "results").glob("*.json")} - results
        return len(found | ({path.name for path in (self.folder / "trained").glob("*/")} - trainings))

    def remembered(self) -> dict[str, Any]:
        """Return what earlier runs know of the datasets and the backbone."""
        return read_json(self.folder / "known.json") or {}

    def remember(self, known: dict[str, Any]) -> None:
        """Keep what is known of the datasets and the backbone."""
        write_atomically(self.folder / "known.json", to_json(known))

    def lock(self, digest: str, wait: bool = False) -> FileLock | None:
        """
        Lock a training or an evaluation, so that several programs can share the work in one folder.

        Args:
            digest (`str`): hash of the settings.
            wait (`bool`, defaults to `False`): whether to wait until another program has finished.

        Returns:
            `filelock.FileLock`, *optional*: the lock. `None` if another program has it.
        """
        folder = self.folder / "locks"
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / digest)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return None
        return lock


_CHECKED = (".json", ".safetensors")


def provenance() -> dict[str, Any]:
    """
    Describe how a result was computed.

    Returns:
        `dict`: `versions`, `commit` (of the repository that contains the package, if any), `hardware` and `time`.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": versions(),
        "commit": _commit(),
        "hardware": {"gpu": device, "cpu": cpu_model(), "threads": num_cores()},
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@cache
def _commit() -> str | None:
    """Return the commit of a source checkout. `None` for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _size(path: Path) -> int | None:
    """Size of a file in bytes. `None` if there is no such file."""
    return path.stat().st_size if path.is_file() else None


__all__ = ["DONE", "Store", "provenance"]
