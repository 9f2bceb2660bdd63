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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from transformers.utils import logging

from ..models.vip2clip.arguments_vip2clip import LABELS
from ..utils.distributed import from_all
from ..utils.extras import extra
from ..utils.files import write_atomically
from ..utils.serialization import to_json
from .images import DatasetImages, FolderImages
from .names import Names, as_text, checksum


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq


logger = logging.get_logger(__name__)
TABLE_FILE, SETTINGS_FILE, PROGRESS_FOLDER = "predictions.parquet", "settings.json", ".progress"
# Subfolders for the files of single images, and the extensions of these files.
IMAGE_FOLDERS = {"heatmaps": ".png", "maps": ".npy"}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("score", pa.float32()),
        ("label", pa.string()),
        ("p_value", pa.float32()),
        ("anomalous_area", pa.float32()),
        ("error", pa.string()),
    ]
)
ROWS_PER_GROUP = 65536
_PART = re.compile(r"part-(\d+)\.parquet")
# How an error message refers to a setting; by default, "KEY setting".
_TITLES = {"model_checksum": "model", "image_processor": "image processor", "dtype": "dtype", "source": "source"}


class PredictionFolder:
    """
    Output folder of a prediction, with its progress.

    Until the prediction is finished, the subfolder `.progress/` contains the names of all images, and one part of the
    table per finished chunk.

    Args:
        path (`pathlib.Path`): the folder.
        chunk_size (`int`): number of images per chunk.
    """

    def __init__(self, path: Path, chunk_size: int) -> None:
        self.path, self.chunk_size = path, chunk_size
        self.table, self.progress = path / TABLE_FILE, path / PROGRESS_FOLDER
        self.names = Names(self.progress / "images.arrow")
        self.num_images = 0
        self._lock: FileLock | None = None

    # Called by the first process only

    def prepare(
        self, images: FolderImages | DatasetImages, settings: dict[str, Any], more: dict[str, Any], overwrite: bool
    ) -> int:
        """
        Create the folder, or resume a prediction with the same settings. Locks the folder.

        Args:
            images ([`FolderImages`] or [`DatasetImages`]): images to predict.
            settings (`dict[str, Any]`): settings that must be the same to resume; JSON-serializable.
            more (`dict[str, Any]`): written next to the settings, may differ. `more["versions"]` contains the version
                of each library, `more["labels"]` the names of normal and anomalous images.
            overwrite (`bool`): whether to delete an existing prediction and start again.

        Returns:
            `int`: number of images if the prediction is already finished, otherwise 0.

        Raises:
            OSError: if the folder contains other files or a prediction with other settings, if another program is
                predicting into it, or if it cannot be written.
            ValueError: if there are no images.
        """
        found = self._read_settings()
        names = images.names()
        settings = {**settings, "num_images": len(names), "ids_sha256": checksum(names)}
        settings = json.loads(json.dumps(settings))  # comparable to settings read from a file
        if found is not None and not overwrite:
            different = [key for key, value in settings.items() if found.get(key) != value]
            if different:
                raise OSError(
                    f"{str(self.path)!r} was created with {_explain(different, found, settings)}; choose another "
                    "folder, or overwrite the prediction (--overwrite)."
                )
            if self.table.exists():
                shutil.rmtree(self.progress, ignore_errors=True)
                return len(names)
            for key, value in more["versions"].items():
                if found.get("versions", {}).get(key) != value:
                    logger.warning(
                        f"{str(self.path)!r} was started with another version of {key}; scores of the remaining "
                        "images can differ by rounding."
                    )
        self.progress.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.progress / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(
                f"Another program is predicting into {str(self.path)!r}; wait until it has finished, or choose "
                "another folder."
            ) from error
        self._lock = lock
        if found is not None and overwrite:
            self._delete(found)
            found = None
        if found is None:
            write_atomically(self.path / SETTINGS_FILE, to_json({**settings, **more}))
        Names.write(self.progress / "images.arrow", names)
        return 0

    def _read_settings(self) -> dict[str, Any] | None:
        """Return the settings of an existing prediction, or None if the folder is new."""
        if self.path.exists() and not self.path.is_dir():
            raise OSError(f"{str(self.path)!r} is a file; expected a folder or a path that does not exist.")
        file = self.path / SETTINGS_FILE
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("kind") == "prediction":
                return found
        # A run that was killed before it wrote the settings leaves only these.
        unfinished = {PROGRESS_FOLDER, f".{SETTINGS_FILE}.tmp"}
        if self.path.exists() and any(entry.name not in unfinished for entry in self.path.iterdir()):
            raise OSError(
                f"{str(self.path)!r} is not empty and does not contain a prediction; expected a new folder, or the "
                "folder of a prediction."
            )
        return None

    def _delete(self, found: dict[str, Any]) -> None:
        """Delete the files that a prediction with these settings writes, and keep all others."""
        self.table.unlink(missing_ok=True)
        for part in self.progress.iterdir():
            if part.name != "lock":
                part.unlink()
        for kind, extension in IMAGE_FOLDERS.items():
            if not found.get(kind):
                continue
            for folder, _, files in os.walk(self.path / kind, topdown=False):
                for file in files:
                    if file.endswith(extension) or re.fullmatch(r"\.\d+\.tmp", file):
                        os.unlink(os.path.join(folder, file))
                with contextlib.suppress(OSError):  # the folder contains other files
                    os.rmdir(folder)

    def finish(self) -> None:
        """
        Merge the parts into one table, a few at a time, and delete them. Releases the lock.

        Raises:
            OSError: if parts are missing, or the table cannot be written.
        """
        missing = self.missing()
        if missing:
            raise OSError(
                f"{len(missing)} of {self.num_chunks} parts of the table are missing in {str(self.progress)!r}; "
                "expected a folder that all processes and machines share. Run the same prediction again to resume."
            )
        content = json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8"))
        schema = SCHEMA.with_metadata({"vip2clip_hf": to_json(content, indent=None).rstrip()})
        staged = self.progress / f"{TABLE_FILE}.tmp"
        parts = [self._part(chunk) for chunk in range(self.num_chunks)]
        step = max(1, ROWS_PER_GROUP // self.chunk_size)
        with open(staged, "wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for start in range(0, len(parts), step):
                    group = pa.concat_tables(pq.ParquetFile(part).read() for part in parts[start : start + step])
                    writer.write_table(group.replace_schema_metadata(schema.metadata), row_group_size=len(group))
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, self.table)
        self.release()
        shutil.rmtree(self.progress, ignore_errors=True)

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

    def _written_chunks(self) -> Iterator[int]:
        with os.scandir(self.progress) as entries:
            for entry in entries:
                if match := _PART.fullmatch(entry.name):
                    yield int(match[1])

    def missing(self) -> list[int]:
        """
        Find the chunks that are not predicted yet.

        Returns:
            `list[int]`: chunks without a complete part, in ascending order.
        """
        missing = np.ones(self.num_chunks, dtype=bool)
        for chunk in self._written_chunks():
            with contextlib.suppress(OSError, pa.ArrowInvalid):  # truncated, for example after a power failure
                missing[chunk] = pq.read_metadata(self._part(chunk)).num_rows != len(self.positions(chunk))
        return np.flatnonzero(missing).tolist()

    def num_done(self) -> int:
        """
        Count the images of all written chunks, for a progress bar.

        Returns:
            `int`: number of images.
        """
        return sum(len(self.positions(chunk)) for chunk in self._written_chunks())

    def write_part(self, chunk: int, rows: Sequence[dict[str, Any]]) -> None:
        """
        Write the part of the table for a chunk.

        Args:
            chunk (`int`): number of the chunk.
            rows (`Sequence[dict[str, Any]]`): one row per image of the chunk, without the id. Missing columns are
                null.
        """
        columns = {"id": [as_text(self.names[position]) for position in self.positions(chunk)]}
        columns.update({name: [row.get(name) for row in rows] for name in SCHEMA.names if name != "id"})
        part = self._part(chunk)
        staged = part.with_name(f".{part.name}.tmp")
        pq.write_table(pa.table(columns, schema=SCHEMA), staged)
        os.replace(staged, part)

    def release(self) -> None:
        """Close the list of names and release the lock, if any."""
        self.names.close()
        if self._lock is not None:
            self._lock.release()


def _explain(different: list[str], found: dict[str, Any], settings: dict[str, Any]) -> str:
    """Describe which settings differ."""
    texts = []
    for key in different:
        if key == "ids_sha256":
            old, new = found.get("num_images"), settings["num_images"]
            texts.append(f"a different list of images (was {old} images, now {new})")
        elif key != "num_images":
            old, new = json.dumps(found.get(key)), json.dumps(settings[key])
            values = f" (was {old}, now {new})" if len(old + new) < 400 else ""
            texts.append(f"a different {_TITLES.get(key, f'{key} setting')}{values}")
    return " and ".join(texts)


def check_room(path: Path, num_maps: int, size: int) -> None:
    """
    Check that the remaining anomaly maps fit on the disk.

    Args:
        path (`pathlib.Path`): output folder.
        num_maps (`int`): number of maps to write, in float16.
        size (`int`): height and width of a map.

    Raises:
        OSError: if there is not enough space.
    """
    needed, free = 2 * size * size * num_maps, shutil.disk_usage(path).free
    if needed > free:
        raise OSError(
            f"The anomaly maps need {needed / 1e9:.1f} GB in {str(path)!r}, but only {free / 1e9:.1f} GB are free; "
            "choose another disk, or do not save the maps."
        )


__all__ = ["IMAGE_FOLDERS", "PredictionFolder", "check_room"]
