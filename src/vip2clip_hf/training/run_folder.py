"""Output folder of a training: which files belong to a run, and the lock against a second training."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..checkpoints.card import is_generated
from ..checkpoints.saving import CODE_FILES, FILE_NAMES, TOKENIZER_FILES, WEIGHT_FILE
from .averaging import AVERAGE_FILE
from .resuming import STATE_FILE, checkpoints_in, has_state, run_of
from .run_record import RECORD_FILE, RunRecord


logger = logging.get_logger(__name__)
LOCK_FILE = ".training.lock"
RESULTS_FILE = "results.json"
_CODE = frozenset(path.name for path in CODE_FILES)
_TRAINER_FILE = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|training_args\.bin"
    rf"|{re.escape(AVERAGE_FILE)}|\..*\.tmp"
)


def is_checkpoint_file(name: str) -> bool:
    """
    Check whether a training writes a file with this name to its checkpoints.

    Args:
        name (`str`): name of the file.

    Returns:
        `bool`: whether it does.
    """
    return (
        name in FILE_NAMES
        or name in _CODE
        or name in TOKENIZER_FILES
        or name == RECORD_FILE
        or WEIGHT_FILE.fullmatch(name) is not None
        or _TRAINER_FILE.fullmatch(name) is not None
    )


class RunFolder:
    """
    Output folder of a training.

    A checkpoint belongs to the run whose id is in its `training_run.json`, which is written first.

    Args:
        path (`str` or `os.PathLike`): the folder.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """
        Lock the folder in the `with` block, so that no second training writes to it. The lock ends with the process.

        Raises:
            OSError: if another training is writing to the folder, or the folder cannot be written.
        """
        if self._lock is not None:  # already locked by the caller
            yield
            return
        if self.path.exists() and not self.path.is_dir():
            raise OSError(f"{str(self.path)!r} is a file; expected a folder or a path that does not exist.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK_FILE)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(
                f"Another training is writing to {str(self.path)!r}; wait until it has finished, or choose another "
                "output_dir."
            ) from error
        except OSError as error:
            raise OSError(
                f"{str(self.path)!r} cannot be written ({error.strerror or error}); choose another output_dir."
            ) from error
        self._lock = lock
        try:
            yield
        finally:
            self._lock = None
            with contextlib.suppress(OSError):  # before the release, so that the next one creates a new file
                os.unlink(self.path / LOCK_FILE)
            lock.release()

    def in_the_way(self, files: Iterable[str] = ()) -> tuple[list[str], list[str]]:
        """
        List what a new run must not be mixed with.

        Args:
            files (`Iterable[str]`, *optional*): names of files that the run writes besides the model.

        Returns:
            `tuple[list[str], list[str]]`: names of the checkpoints of other training runs, and of the files of a model
            and others that the run would replace.
        """
        checkpoints = [
            path.name
            for _, path in checkpoints_in(self.path)
            if (path / RECORD_FILE).is_file() or (path / STATE_FILE).is_file()
        ]
        names = sorted(path.name for path in self.path.iterdir())
        # A card of the user is kept, and a record belongs to a training.
        model = {*FILE_NAMES, *_CODE} - {"README.md", RECORD_FILE}
        found = [name for name in names if name in files or name in model or WEIGHT_FILE.fullmatch(name)]
        return checkpoints, sorted(found, key=lambda name: WEIGHT_FILE.fullmatch(name) is None)  # weights first

    def delete_run(self, record: RunRecord) -> None:
        """
        Delete the checkpoints and files that a run has written. All other files are kept.

        Args:
            record ([`RunRecord`]): the run.
        """
        for _, path in checkpoints_in(self.path):
            if run_of(path) == record.run_id:
                self.delete_checkpoint(path)
        for name in record.files:
            path = self.path / Path(name).name
            if path.name == "README.md" and path.is_file():
                with contextlib.suppress(UnicodeDecodeError):
                    if not is_generated(path.read_text(encoding="utf-8")):
                        continue
            if path.is_file() and (is_checkpoint_file(path.name) or path.name == RESULTS_FILE):
                path.unlink()
        (self.path / RECORD_FILE).unlink(missing_ok=True)

    def delete_checkpoint(self, folder: Path) -> None:
        """
        Delete a checkpoint of a run. Files that no training writes are kept, with a warning.

        Args:
            folder (`pathlib.Path`): the checkpoint.
        """
        if folder.is_symlink():
            folder.unlink()
            return
        kept = []
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD_FILE):  # the record last
            if path.is_dir() and not path.is_symlink() and path.name.startswith(".vip2clip-"):
                shutil.rmtree(path, ignore_errors=True)
            elif not path.is_dir() and is_checkpoint_file(path.name):
                path.unlink()
            else:
                kept.append(path.name)
        if kept:
            logger.warning(f"Kept {', '.join(kept[:5])} in {folder}: no training has written these files.")
        else:
            folder.rmdir()

    def remove_incomplete(self, run_id: str) -> list[str]:
        """
        Remove checkpoints of a run that an interrupted save left incomplete. They would count as checkpoints.

        Args:
            run_id (`str`): id of the run.

        Returns:
            `list[str]`: names of the removed folders.
        """
        removed = []
        for _, path in checkpoints_in(self.path):
            if run_of(path) == run_id and not has_state(path):
                self.delete_checkpoint(path)
                removed.append(path.name)
        return removed

    def check_free(self, steps: Iterable[int], *run_ids: str) -> None:
        """
        Check that the checkpoints of a run do not replace other files.

        Args:
            steps (`Iterable[int]`): steps at which checkpoints are saved.
            *run_ids (`str`): ids of the run, and of an earlier run that it replaces.

        Raises:
            OSError: if a checkpoint of this name exists that the runs have not written.
        """
        for step in steps:
            path = self.path / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            if not os.path.lexists(path) or run_of(path) in run_ids:
                continue
            if not path.is_dir() or any(is_checkpoint_file(name) for name in os.listdir(path)):
                raise OSError(
                    f"{str(path)!r} exists and was not written by this training, which would replace it; move it, or "
                    "choose another output_dir."
                )

    def begin_checkpoint(self, folder: Path, record: RunRecord) -> None:
        """
        Create a checkpoint folder with the record of the run.

        Args:
            folder (`pathlib.Path`): the checkpoint.
            record ([`RunRecord`]): the run.

        Raises:
            OSError: if the folder contains a checkpoint that the run has not written, or cannot be written.
        """
        self.check_free([int(folder.name.rsplit("-", 1)[1])], record.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder)

    def rotate(self, run_id: str, limit: int | None, keep: Iterable[str | os.PathLike | None]) -> None:
        """
        Delete the oldest checkpoints of a run. Checkpoints of others do not count and are kept.

        Args:
            run_id (`str`): id of the run.
            limit (`int`, *optional*): number of checkpoints to keep. Without a limit, all are kept.
            keep (`Iterable`): checkpoints to keep in any case.
        """
        if limit is None or limit <= 0:
            return
        own = [path for _, path in checkpoints_in(self.path) if run_of(path) == run_id]
        protected = {os.path.realpath(path) for path in keep if path is not None}
        surplus = len(own) - max(limit, sum(os.path.realpath(path) in protected for path in own))
        for path in [path for path in own if os.path.realpath(path) not in protected][: max(0, surplus)]:
            self.delete_checkpoint(path)


__all__ = ["RunFolder", "is_checkpoint_file"]
