"""Output folder of a prediction: settings, progress and the finished table.

The images are split into chunks of a fixed size. One process predicts each chunk. After an interruption, a chunk is
either complete or missing. No batch spans two chunks, so the table does not depend on which process predicts which
chunk, or when.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..utils.distributed import from_all
from ..utils.extras import extra
from ..utils.file_state import UNREADABLE, FileState
from ..utils.files import write_atomically
from ..utils.run_folder import MANIFEST_FILE, PROGRESS_FOLDER, RunFolder, files_below
from ..utils.serialization import to_json
from .differences import explain_differences
from .earlier import (
    PART,
    RESULTS,
    STATE,
    STATE_FILE,
    TABLE_FILE,
    Match,
    match,
    report_differences,
    rows_of_unfinished,
    settings_of,
    settings_of_finished,
    summarize,
    write_state,
    write_table,
)
from .growing import GrowingFolder
from .image_files import IMAGE_FOLDERS, check_foreign_files, old_targets, rows_if_complete, targets_of
from .images import DatasetImages, FolderImages, Images
from .names import Names, as_text, checksum, packed


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.parquet as pq


logger = logging.get_logger(__name__)
SETTINGS_FILE = "settings.json"
ROWS_PER_GROUP = 65536
_PART = re.compile(r"part-(\d+)\.parquet")


class PredictionFolder:
    """
    Output folder of a prediction, with its progress.

    Until the prediction is finished, the subfolder `.progress/` contains the settings, the names of all images, and
    one part of the table per finished chunk. New files of images wait in `.progress/new/`. An earlier prediction in
    the folder stays complete until then.

    Args:
        path (`pathlib.Path`): the folder.
        chunk_size (`int`): number of images per chunk.
        title (`str`, *optional*): name of the folder in messages. Defaults to the path.
    """

    def __init__(self, path: Path, chunk_size: int, title: str | None = None) -> None:
        self.path, self.chunk_size, self.title = path, chunk_size, title or str(path)
        self.run = RunFolder(path, "prediction", title)
        self.table, self.progress = path / TABLE_FILE, path / PROGRESS_FOLDER
        self.new = self.progress / "new"
        self.names = Names(self.progress / "images.arrow")
        self.num_images = 0

    # Called by the first process only

    def prepare(self, images: Images, settings: dict[str, Any], more: dict[str, Any], overwrite: bool) -> int:
        """
        Lock the folder, and plan which images to predict. Existing results are not changed.

        If the folder contains a prediction with the same settings, finished or not, the rows of images that have not
        changed are reused.

        Args:
            images ([`Images`]): images to predict.
            settings (`dict[str, Any]`): settings that must be the same to resume; JSON-serializable.
            more (`dict[str, Any]`): written next to the settings, may differ. `more["versions"]` contains the version
                of each library.
            overwrite (`bool`): whether to predict all images again and replace an existing prediction.

        Returns:
            `int`: number of images if the prediction is already finished, otherwise 0.

        Raises:
            OSError: if the folder contains other files or a prediction with other settings, if another program is
                predicting into it, or if it cannot be written.
            ValueError: if there are no images.
        """
        exists = self.run.check(self._files_of_0_1())
        has_manifest = (self.path / MANIFEST_FILE).exists()
        names = images.names()
        settings = {**settings, "num_images": len(names), "ids_sha256": checksum(names)}
        settings = json.loads(to_json(settings))  # comparable to settings read from a file
        if exists and not has_manifest and not overwrite:
            raise OSError(
                f"{self.title!r} contains a prediction of an earlier version, which did not record the contents "
                "of the images; choose another folder, or overwrite the prediction (--overwrite)."
            )
        self.run.lock()
        self._apply()  # after an interruption
        finished, pending = settings_of_finished(self.path), settings_of(self.progress / SETTINGS_FILE)
        earlier, found = None, finished or pending
        if pending is not None and not explain_differences(pending, settings):
            found, earlier = pending, self._rows_of_progress()
            pending = pending if earlier is not None else None
        elif not overwrite and found is not None:
            if different := explain_differences(found, settings):
                raise OSError(
                    f"{self.title!r} was created with {different}; choose another folder, or overwrite the "
                    "prediction (--overwrite)."
                )
            earlier = rows_if_complete(self.path, images, settings, self.title)
        if earlier is None or found is not pending:
            if pending is not None:
                logger.warning(f"{self.title!r}: the progress of an unfinished prediction is deleted.")
            pending = None
        if isinstance(images, GrowingFolder) and earlier is not None:
            planned = self.names.table()["name"] if pending is not None else earlier["name"]
            names = images.grow(names, planned, earlier["name"])
            settings.update(num_images=len(names), ids_sha256=checksum(names))
        check_foreign_files(self.path, images, names, settings)
        plan = None
        if earlier is not None and found is not None:
            retry = found.get("decoding") != more["decoding"]
            plan = match(images, names, earlier, any(settings.get(kind) for kind in IMAGE_FOLDERS), retry)
            del earlier  # releases files that are replaced below
            plan.new = 0 if pending is not None else plan.new  # those are the rest of the unfinished prediction
            old_versions = found.get("versions", {})
            report_differences(self.title, plan, len(names), old_versions, more["versions"])
            more = {**more, "versions": old_versions or more["versions"]}
            if pending is None and plan.in_order and (self.path / SETTINGS_FILE).exists():
                self._clear_progress()
                self.run.release()
                return len(names)
            same = pending is not None and not plan.changed and self.names.locations() == images.locations()
            if same and checksum(self.names.table()["name"]) == checksum(names):
                return 0  # the plan and its parts are still valid
        self._write_plan(names, plan, {**settings, **more}, images, pending is not None)
        return 0

    def _rows_of_progress(self) -> "pa.Table | None":
        """Read the rows of the unfinished prediction. A damaged part is deleted, so its images are predicted again."""
        try:
            self.num_images = len(self.names)
            parts = []
            for chunk in self._written():
                try:
                    found = pq.read_table(self._part(chunk))
                    plan = (found.schema.metadata or {}).get(b"plan", b"").decode()
                    if plan == self.names.plan and len(found) == len(self.positions(chunk)) > 0:
                        parts.append((self.positions(chunk), self._part(chunk)))
                        continue
                except (OSError, ValueError):  # errors of Arrow are subclasses
                    logger.warning(f"{self._part(chunk).name} is damaged; its images are predicted again.")
                self._part(chunk).unlink(missing_ok=True)
            return rows_of_unfinished(self.names, parts)
        except (OSError, ValueError, KeyError) as error:
            logger.warning(f"The progress in {str(self.progress)!r} is damaged ({error}) and is deleted.")
            self.names.close()
            return None

    def _write_plan(
        self,
        names: "pa.ChunkedArray",
        plan: Match | None,
        settings: dict[str, Any],
        images: Images,
        keep_files: bool,
    ) -> None:
        """Write a new plan. With `keep_files`, keep the new files of known images."""
        keep: set[str] = set()
        if keep_files and plan is not None:
            known_rows = plan.known["known"].to_numpy(zero_copy_only=False)
            keep = set(targets_of(images, names, settings, known_rows))
        for file in files_below(self.new):
            if file not in keep:
                (self.new / file).unlink()
        (self.progress / SETTINGS_FILE).unlink(missing_ok=True)
        self.names.close()  # an open file cannot be replaced on Windows
        known = None if plan is None else plan.known
        Names.write(self.progress / "images.arrow", names, known, images.locations())
        for part in self.progress.glob("*part-*.parquet*"):
            part.unlink()
        # Last, because it makes the plan valid.
        write_atomically(self.progress / SETTINGS_FILE, to_json(settings))

    def _files_of_0_1(self) -> list[str]:
        """List the files of a prediction without a manifest."""
        return [SETTINGS_FILE, TABLE_FILE, STATE_FILE] if settings_of_finished(self.path) is not None else []

    def finish(self) -> None:
        """
        Merge the parts into one table, a few at a time, move all files to the folder, and release the lock.

        Raises:
            OSError: if parts are missing, if a file of the user would be replaced, or if the table cannot be written.
        """
        missing = self.missing()
        if missing:
            raise OSError(
                f"{len(missing)} of {self.num_chunks} parts of the table are missing in {str(self.progress)!r}; "
                "expected a folder that all processes and machines share. Run the same prediction again to resume."
            )
        content = json.loads((self.progress / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.new.mkdir(exist_ok=True)
        parts = [self._part(chunk) for chunk in range(self.num_chunks)]
        step = max(1, ROWS_PER_GROUP // self.chunk_size)
        write_table(self.new / TABLE_FILE, parts, step, to_json(content, indent=None).rstrip())
        write_state(self.new / STATE_FILE, self.names.table()["name"], parts, self.new / TABLE_FILE)
        write_atomically(self.new / SETTINGS_FILE, to_json(content))
        self.run.claim((TABLE_FILE, STATE_FILE, SETTINGS_FILE))
        images = FolderImages if "folder" in content["source"] else DatasetImages
        errors = pq.read_table(self.new / TABLE_FILE, columns=["error"])["error"]
        kept = targets_of(images, self.names.table()["name"], content, errors.is_null().to_numpy(zero_copy_only=False))
        removed = set(old_targets(self.path)) - set(kept)
        Names.write(self.progress / "removed.arrow", packed(os.fsencode(name) for name in sorted(removed)))
        write_atomically(self.progress / "moving.json", "{}")
        self._apply()
        self.run.release()

    def _apply(self) -> None:
        """Move the files of a finished prediction to the folder. It can be interrupted and repeated."""
        if not (self.progress / "moving.json").exists():
            return
        removed = Names(self.progress / "removed.arrow")
        try:
            for position in range(len(removed)):
                target = self.path / os.fsdecode(removed[position])
                target.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # absent, or contains other files
                    os.removedirs(target.parent)
        except (FileNotFoundError, ValueError) as error:  # damaged
            logger.warning(f"{self.title!r} can contain heatmaps or maps of removed images ({error}).")
        removed.close()
        last = (STATE_FILE, TABLE_FILE, SETTINGS_FILE)
        for file in sorted(files_below(self.new), key=lambda file: last.index(file) if file in last else -1):
            target = self.path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.new / file, target)
        self.names.close()
        (self.progress / SETTINGS_FILE).unlink(missing_ok=True)
        (self.progress / "moving.json").unlink()
        self._clear_progress()

    def _clear_progress(self) -> None:
        """Delete everything in the progress except the lock."""
        self.names.close()
        for entry in list(self.progress.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != "lock":
                entry.unlink()

    # Called by all processes

    def open(self) -> None:
        """
        Open the folder in every process, after [`PredictionFolder.prepare`] in the first one.

        Raises:
            OSError: if the folder is not visible to all processes.
        """
        if not all(from_all((self.progress / "images.arrow").exists())):
            raise OSError(
                f"{self.title!r} is not visible to all processes; expected a folder that all processes and "
                "machines share."
            )
        self.num_images = len(self.names)

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.num_images // self.chunk_size)

    def positions(self, chunk: int) -> range:
        """
        Return the positions of the images of a chunk.

        Args:
            chunk (`int`): number of the chunk, starting at 0.

        Returns:
            `range`: positions in the list of all images.
        """
        return range(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.num_images))

    def _part(self, chunk: int) -> Path:
        return self.progress / f"part-{chunk:09d}.parquet"

    def _written(self) -> list[int]:
        """Chunks with a part. Parts are complete, and `prepare` deletes those of other plans."""
        with os.scandir(self.progress) as entries:
            return sorted(int(found[1]) for entry in entries if (found := _PART.fullmatch(entry.name)))

    def missing(self) -> list[int]:
        """
        Find the chunks that are not predicted yet.

        Returns:
            `list[int]`: chunks without a complete part, in ascending order.
        """
        missing = np.ones(self.num_chunks, dtype=bool)
        missing[self._written()] = False
        return np.flatnonzero(missing).tolist()

    def unknown(self, chunk: int) -> list[int]:
        """
        Find the images of a chunk to predict.

        Args:
            chunk (`int`): number of the chunk.

        Returns:
            `list[int]`: positions in the list of all images, in ascending order.
        """
        positions, table = self.positions(chunk), self.names.table()
        if "known" not in table.column_names:
            return list(positions)
        known = table["known"].slice(positions.start, len(positions)).to_pylist()
        return [position for position, is_known in zip(positions, known) if not is_known]

    def num_done(self) -> int:
        """
        Count the images that need not be predicted.

        Returns:
            `int`: number of images of all written chunks, and of known images of the others.
        """
        written = set(self._written())
        return sum(
            len(self.positions(chunk)) - (0 if chunk in written else len(self.unknown(chunk)))
            for chunk in range(self.num_chunks)
        )

    def write_part(self, chunk: int, rows: dict[int, dict[str, Any]], states: dict[int, FileState]) -> None:
        """
        Write the part of the table for a chunk.

        Args:
            chunk (`int`): number of the chunk.
            rows (`dict[int, dict[str, Any]]`): row of each predicted image by position, without the id. Missing
                columns are null. The rows of the other images are known.
            states (`dict[int, FileState]`): state of the file of each predicted image.
        """
        positions, table = self.positions(chunk), self.names.table()
        columns: dict[str, list[Any]] = {"id": [as_text(self.names[position]) for position in positions]}
        known = None
        if "known" in table.column_names:
            known = table.slice(positions.start, len(positions)).select([*RESULTS.names, *STATE.names]).to_pylist()
        for number, position in enumerate(positions):
            if position in rows:
                row = {**rows[position], **states.get(position, FileState(UNREADABLE))._asdict()}
            else:
                row = (known or [])[number]
            for name in (*RESULTS.names, *STATE.names):
                columns.setdefault(name, []).append(row.get(name))
        part = self._part(chunk)
        staged = part.with_name(f".{part.name}.tmp")
        content = pa.table(columns, schema=PART).replace_schema_metadata({"plan": self.names.plan})
        pq.write_table(content, staged)
        with open(staged, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(staged, part)

    def summary(self) -> dict[str, Any]:
        """Count the images of the finished prediction, see [`summarize`]."""
        return summarize(self.path)

    def release(self) -> None:
        """Close the list of names and release the lock, if any."""
        self.names.close()
        self.run.release()


__all__ = ["PredictionFolder"]
