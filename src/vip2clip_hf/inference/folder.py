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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..models.vip2clip.arguments_vip2clip import LABELS
from ..utils.distributed import from_all
from ..utils.extras import extra
from ..utils.file_state import UNREADABLE, FileState
from ..utils.files import write_atomically
from ..utils.run_folder import PROGRESS_FOLDER, RunFolder
from ..utils.serialization import to_json
from .earlier import (
    PART,
    RESULTS,
    SCHEMA,
    STATE,
    STATE_FILE,
    TABLE_FILE,
    explain_differences,
    match,
    rows_of_finished,
    rows_of_unfinished,
    settings_of,
    write_state,
)
from .image_files import IMAGE_FOLDERS, check_foreign_files, count_lost, old_targets, targets_of
from .images import DatasetImages, FolderImages
from .names import Names, as_text, checksum, packed


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.compute as pc
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
    """

    def __init__(self, path: Path, chunk_size: int) -> None:
        self.path, self.chunk_size = path, chunk_size
        self.run = RunFolder(path, "prediction")
        self.table, self.progress = path / TABLE_FILE, path / PROGRESS_FOLDER
        self.new = self.progress / "new"
        self.names = Names(self.progress / "images.arrow")
        self.num_images = 0

    # Called by the first process only

    def prepare(
        self, images: FolderImages | DatasetImages, settings: dict[str, Any], more: dict[str, Any], overwrite: bool
    ) -> int:
        """
        Lock the folder, and plan which images to predict. Existing results are not changed.

        If the folder contains a prediction with the same settings, finished or not, the rows of images that have not
        changed are reused.

        Args:
            images ([`FolderImages`] or [`DatasetImages`]): images to predict.
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
        has_manifest = (self.path / ".vip2clip.json").exists()
        names = images.names()
        settings = {**settings, "num_images": len(names), "ids_sha256": checksum(names)}
        settings = json.loads(to_json(settings))  # comparable to settings read from a file
        if exists and not has_manifest and not overwrite:
            raise OSError(
                f"{str(self.path)!r} contains a prediction of an earlier version, which did not record the contents "
                "of the images; choose another folder, or overwrite the prediction (--overwrite)."
            )
        self.run.lock()
        self._apply()  # after an interruption
        finished, pending = settings_of(self.path / SETTINGS_FILE), settings_of(self.progress / SETTINGS_FILE)
        earlier = None
        if pending is not None and not explain_differences(pending, settings):
            earlier = rows_of_unfinished(
                self.names, [(self.positions(one), self._part(one)) for one in self._written()]
            )
        elif not overwrite:
            found = finished or pending
            if found is not None and (different := explain_differences(found, settings)):
                raise OSError(
                    f"{str(self.path)!r} was created with {different}; choose another "
                    "folder, or overwrite the prediction (--overwrite)."
                )
            if finished is not None:
                pending = None
                earlier = rows_of_finished(self.path)
                if earlier is None:
                    logger.warning(
                        f"Files in {str(self.path)!r} are damaged or missing. All images are predicted again."
                    )
                elif lost := count_lost(self.path, images, earlier["name"], settings):
                    logger.warning(
                        f"Missing heatmaps or maps in {str(self.path)!r}: {lost}. All images are predicted again."
                    )
                    earlier = None
        check_foreign_files(self.path, images, names, settings)
        plan = None
        if earlier is not None:
            found = pending or finished or {}
            plan = match(images, names, earlier, any(settings.get(kind) for kind in IMAGE_FOLDERS))
            counts = {"changed": plan.changed, "new": plan.new if pending is None else 0, "removed": plan.removed}
            if text := ", ".join(f"{count} {kind}" for kind, count in counts.items() if count):
                logger.warning(
                    f"Images since the last prediction into {str(self.path)!r}: {text}. The rows of {plan.num_known} "
                    f"of {len(names)} images are kept."
                )
            for key, value in more["versions"].items():
                if found.get("versions", {}).get(key) != value:
                    logger.warning(
                        f"{str(self.path)!r} was written with another version of {key}; scores of images that are "
                        "predicted now can differ by rounding."
                    )
            more = {**more, "versions": found.get("versions", more["versions"])}
            if pending is None and plan.in_order:
                self._clear_progress()
                self.run.release()
                return len(names)
            if pending is not None and not plan.changed and checksum(self.names.table()["name"]) == checksum(names):
                return 0  # the plan and its parts are still valid
        keep = set()
        if pending is not None and plan is not None:
            known = plan.known["known"].to_numpy(zero_copy_only=False)
            keep = set(targets_of(images, names, settings, known))
        for file in [path for path in self.new.rglob("*") if path.is_file()]:
            if file.relative_to(self.new).as_posix() not in keep:
                file.unlink()
        (self.progress / SETTINGS_FILE).unlink(missing_ok=True)
        Names.write(self.progress / "images.arrow", names, None if plan is None else plan.known)
        self.names.close()
        for part in self.progress.glob("*part-*.parquet*"):
            part.unlink()
        # Last, because it makes the plan valid.
        write_atomically(self.progress / SETTINGS_FILE, to_json({**settings, **more}))
        return 0

    def _files_of_0_1(self) -> list[str]:
        """List the files of a prediction without a manifest."""
        return [SETTINGS_FILE, TABLE_FILE] if settings_of(self.path / SETTINGS_FILE) is not None else []

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
        schema = SCHEMA.with_metadata({"vip2clip_hf": to_json(content, indent=None).rstrip()})
        self.new.mkdir(exist_ok=True)
        parts = [self._part(chunk) for chunk in range(self.num_chunks)]
        step = max(1, ROWS_PER_GROUP // self.chunk_size)
        with open(self.new / TABLE_FILE, "wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for start in range(0, len(parts), step):
                    group = pa.concat_tables(pq.read_table(part) for part in parts[start : start + step])
                    group = group.select(SCHEMA.names).replace_schema_metadata(schema.metadata)
                    writer.write_table(group, row_group_size=len(group))
            file.flush()
            os.fsync(file.fileno())
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
        for position in range(len(removed)):
            target = self.path / os.fsdecode(removed[position])
            target.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # absent, or contains other files
                os.removedirs(target.parent)
        removed.close()
        files = [path for path in self.new.rglob("*") if path.is_file()]
        last = [self.new / name for name in (STATE_FILE, TABLE_FILE, SETTINGS_FILE)]
        for file in [*(file for file in files if file not in last), *(file for file in last if file in files)]:
            target = self.path / file.relative_to(self.new)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
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

    def summary(self) -> dict[str, Any]:
        """
        Count the images of the finished table.

        Returns:
            `dict[str, Any]`: `num_images`, `num_normal`, `num_anomalous`, `num_unreadable`, and `table`, the path of
            the table.
        """
        # Predictions of version 0.1 contain no names.
        names = json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8")).get("labels", LABELS)
        counts = {"num_images": 0, "num_normal": 0, "num_anomalous": 0, "num_unreadable": 0}
        with pq.ParquetFile(self.table) as file:
            for batch in file.iter_batches(columns=["label", "error"]):
                counts["num_images"] += len(batch)
                counts["num_unreadable"] += len(batch) - batch["error"].null_count
                for label, name in zip(LABELS, names):
                    counts[f"num_{label}"] += pc.sum(pc.equal(batch["label"], name)).as_py() or 0
        return {**counts, "table": str(self.table)}

    # Called by all processes

    def open(self) -> None:
        """
        Open the folder in every process, after [`PredictionFolder.prepare`] in the first one.

        Raises:
            OSError: if the folder is not visible to all processes.
        """
        if not all(from_all((self.progress / "images.arrow").exists())):
            raise OSError(
                f"{str(self.path)!r} is not visible to all processes; expected a folder that all processes and "
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

    def _written(self) -> Iterator[int]:
        """Chunks with a complete part of this plan."""
        self.num_images = len(self.names)
        with os.scandir(self.progress) as entries:
            chunks = sorted(int(match[1]) for entry in entries if (match := _PART.fullmatch(entry.name)))
        for chunk in chunks:
            with contextlib.suppress(OSError, pa.ArrowInvalid):  # truncated, for example after a power failure
                found = pq.read_metadata(self._part(chunk))
                plan = (found.metadata or {}).get(b"plan", b"").decode()
                if plan == self.names.plan and found.num_rows == len(self.positions(chunk)) > 0:
                    yield chunk

    def missing(self) -> list[int]:
        """
        Find the chunks that are not predicted yet.

        Returns:
            `list[int]`: chunks without a complete part, in ascending order.
        """
        missing = np.ones(self.num_chunks, dtype=bool)
        missing[list(self._written())] = False
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
        os.replace(staged, part)

    def release(self) -> None:
        """Close the list of names and release the lock, if any."""
        self.names.close()
        self.run.release()


__all__ = ["PredictionFolder"]
