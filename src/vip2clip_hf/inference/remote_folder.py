"""Output folder of a prediction in a store: a copy in a temporary folder, and the order in which objects are written.

A store has no rename and no locks. Planning, resuming and merging work on the copy, with the code of local folders.
Each finished part is an object that is written once. The objects of the results are written at the end, the table
last, and the progress is deleted after that: after an interruption, the progress is complete or the results are.

On the Hub, each object is a commit, and their number is limited. There, the progress stays on this machine.
"""

import hashlib
import os
import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..data.store_copy import store_cache
from ..utils.distributed import world
from ..utils.file_state import FileState
from ..utils.remote import RemoteFolder
from ..utils.remote_lock import RemoteLock
from ..utils.run_folder import MANIFEST_FILE, PROGRESS_FOLDER
from .earlier import STATE_FILE, TABLE_FILE
from .folder import SETTINGS_FILE, PredictionFolder
from .images import Images


logger = logging.get_logger(__name__)
LOCK = f"{PROGRESS_FOLDER}/lock.json"
PLAN = f"{PROGRESS_FOLDER}/images.arrow"
PENDING = f"{PROGRESS_FOLDER}/{SETTINGS_FILE}"
# The table is the last one.
RESULTS = (MANIFEST_FILE, STATE_FILE, SETTINGS_FILE, TABLE_FILE)
NUM_THREADS = 16
# Kinds of stores to which only results are written.
RESULTS_ONLY = ("hf",)


class RemotePredictionFolder(PredictionFolder):
    """
    Output folder of a prediction in a store, such as `s3://bucket/predictions`.

    Heatmaps and maps are not supported, because they would have to be moved one at a time.

    Args:
        url (`str`): URL of the folder.
        chunk_size (`int`): number of images per chunk.
    """

    def __init__(self, url: str, chunk_size: int) -> None:
        self.remote = RemoteFolder(url)
        self._results_only = self.remote.scheme in RESULTS_ONLY
        if self._results_only:
            digest = hashlib.blake2b(self.remote.url.encode(), digest_size=8).hexdigest()
            self._copy = store_cache().with_name("predictions") / digest
        else:
            self._copy = Path(tempfile.mkdtemp(prefix="vip2clip-"))
            weakref.finalize(self, _remove, self._copy, os.getpid())
        super().__init__(self._copy / "predictions", chunk_size, self.remote.url)
        self._lock = RemoteLock(self.remote, LOCK)
        # Objects that are the same as their copies: size and time of the copy, by name.
        self._same: dict[str, tuple[int, int]] = {}

    def prepare(self, images: Images, settings: dict[str, Any], more: dict[str, Any], overwrite: bool) -> int:
        """Lock the folder, and plan which images to predict, see [`PredictionFolder.prepare`]."""
        for kind in ("heatmaps", "maps"):
            if settings.get(kind):
                raise ValueError(
                    f"{kind} is True for the output folder {self.title!r}; expected False, because {kind} are only "
                    "written to local folders."
                )
        self._check_others()
        if self._results_only:
            for name in RESULTS:
                (self.path / name).unlink(missing_ok=True)
        else:
            self._lock.acquire()
        self._pull()
        found = super().prepare(images, settings, more, overwrite)
        self._push_progress()
        if found:
            self._lock.release()
        return found

    def _check_others(self) -> None:
        """Refuse a folder with other objects and without a manifest, like a local one."""
        kind = self.remote.kind()
        if kind == "file":
            raise OSError(f"{self.title!r} is a file; expected a folder or a path that does not exist.")
        names = {entry.name for entry in self.remote.entries()} if kind is not None else set()
        if names - {PROGRESS_FOLDER, ""} and MANIFEST_FILE not in names:
            raise OSError(
                f"{self.title!r} is not empty and does not contain a prediction; expected a new folder, or the folder "
                "of a prediction."
            )

    def _objects(self) -> list[str]:
        """Objects of the results and of the progress, without the lock."""
        names = []
        for folder in ("", PROGRESS_FOLDER):
            try:
                entries = self.remote.entries(folder)
            except FileNotFoundError:
                continue
            found = [entry.name for entry in entries if not entry.is_folder]
            names += [f"{folder}/{name}" for name in found] if folder else [name for name in found if name in RESULTS]
        return [name for name in names if name != LOCK]

    def _pull(self, only: str | None = None) -> None:
        """Download objects that are not in the copy: all of them, or those with this prefix."""
        missing = [
            name for name in self._objects() if (only is None or name.startswith(only)) and name not in self._same
        ]

        def download(name: str) -> None:
            self.remote.download(name, self.path / name)
            self._same[name] = self._stamp(name)

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(download, missing))

    def _stamp(self, name: str) -> tuple[int, int]:
        found = (self.path / name).stat()
        return found.st_size, found.st_mtime_ns

    def _upload(self, name: str) -> None:
        self.remote.write(name, self.path / name)
        self._same[name] = self._stamp(name)

    def _push_progress(self) -> None:
        """Make the progress in the store the same as in the copy. The settings make a plan valid, so they are last."""
        if self._results_only:
            return
        here = {
            path.relative_to(self.path).as_posix()
            for path in self.progress.glob("*")
            if path.is_file() and path.name != "lock"
        }
        changed = {name for name in here if self._same.get(name) != self._stamp(name)}
        gone = {name for name in self._objects() if name.startswith(PROGRESS_FOLDER)} - here
        if PENDING in gone or PLAN in changed:
            self._delete([PENDING])
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(self._upload, sorted(changed - {PENDING})))
        self._delete(sorted(gone - {PENDING}))
        if PENDING in here and (PENDING in changed or PENDING not in self._same):
            self._upload(PENDING)
        if self._same.get(MANIFEST_FILE) != self._stamp(MANIFEST_FILE):
            self._upload(MANIFEST_FILE)

    def _delete(self, names: list[str]) -> None:
        for name in names:
            self._same.pop(name, None)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(self.remote.delete, names))

    def open(self) -> None:
        """Open the folder in every process. The others than the first download the plan."""
        if world()[0] > 0 and not self._results_only:
            self._pull(PLAN)
            self._pull(PENDING)
        super().open()

    def write_part(self, chunk: int, rows: dict[int, dict[str, Any]], states: dict[int, FileState]) -> None:
        """Write the part of the table for a chunk, as one object."""
        super().write_part(chunk, rows, states)
        if self._lock.lost:
            self._lock.check()
        if not self._results_only:
            self._upload(f"{PROGRESS_FOLDER}/{self._part(chunk).name}")

    def finish(self) -> None:
        """
        Merge the parts into one table, upload the results, and delete the progress.

        Raises:
            OSError: if parts are missing, or if another program has taken over the folder.
            StoreError: if the store cannot be reached, or refuses access.
        """
        self._pull(f"{PROGRESS_FOLDER}/part-")  # of the other processes
        super().finish()
        if not self._results_only:
            self._lock.check()
        for name in RESULTS:
            self._upload(name)
        if self._results_only:
            shutil.rmtree(self._copy / "predictions" / PROGRESS_FOLDER, ignore_errors=True)
            return
        progress = [name for name in self._objects() if name.startswith(f"{PROGRESS_FOLDER}/")]
        self._delete([PENDING])
        self._delete([name for name in progress if name != PENDING])
        self._lock.release()

    def summary(self) -> dict[str, Any]:
        """Count the images of the finished prediction, see [`summarize`]."""
        return {**super().summary(), "table": f"{self.title}/{TABLE_FILE}"}

    def release(self) -> None:
        """Release the lock, if any, and delete the copy."""
        super().release()
        self._lock.release()
        if not self._results_only:
            shutil.rmtree(self._copy, ignore_errors=True)


def _remove(folder: Path, process: int) -> None:
    """Delete a folder, not in workers that are forked from the process that created it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["RemotePredictionFolder"]
