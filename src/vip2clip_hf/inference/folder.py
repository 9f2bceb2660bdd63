"""The folder of a prediction: its settings, how far it has come, and the finished table.

The images are cut into chunks of a fixed size. A chunk is what one process takes, and what is either complete or
missing after an interruption. No computation spans two chunks, so the table does not depend on which process computed
which chunk or when.
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

from ..models.vip2clip.decision_vip2clip import LABELS
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
# Folders for what is written for single images, and the extensions there.
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


class PredictionFolder:
    """
    The folder of a prediction, and how far it has come: `.progress/` holds the names of all images and, for every
    chunk that is done, a part of the table.

    Args:
        path (`Path`): the folder.
        chunk_size (`int`): images of a chunk.
    """

    def __init__(self, path: Path, chunk_size: int):
        self.path, self.chunk_size = path, chunk_size
        self.table, self.progress = path / TABLE_FILE, path / PROGRESS_FOLDER
        self.names = Names(self.progress / "images.arrow")
        self.num_images = 0
        self._lock: FileLock | None = None

    # The first process

    def prepare(
        self, images: FolderImages | DatasetImages, settings: dict[str, Any], more: dict[str, Any], overwrite: bool
    ) -> int:
        """
        Make the folder, or take up one with these settings.

        Args:
            images: what is to be predicted.
            settings (`dict`): have to be the same for going on.
            more (`dict`): is written with them.
            overwrite (`bool`): start anew.

        Returns:
            `int`: images of a prediction that is finished, 0 where there is something to do.

        Raises:
            OSError: a folder with something else, another prediction, or one that another program works on.
        """
        found = self._found()
        names = images.names()
        settings = {**settings, "num_images": len(names), "ids_sha256": checksum(names)}
        settings = json.loads(json.dumps(settings))  # as it is read again
        if found is not None and not overwrite:
            different = [key for key, value in settings.items() if found.get(key) != value]
            if different:
                raise OSError(
                    f"{str(self.path)!r} holds a prediction with {_explain(different, found, settings)}; choose "
                    "another folder, or overwrite it (--overwrite)."
                )
            if self.table.exists():
                shutil.rmtree(self.progress, ignore_errors=True)
                return len(names)
            for key, value in more["versions"].items():
                if found.get("versions", {}).get(key) != value:
                    logger.warning(
                        f"{self.path} was begun with another version of {key}; what is left may round differently."
                    )
        self.progress.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.progress / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(
                f"Another program is predicting into {str(self.path)!r}; wait for it or choose another folder."
            ) from error
        self._lock = lock
        if found is not None and overwrite:
            self._delete(found)
            found = None
        if found is None:
            write_atomically(self.path / SETTINGS_FILE, to_json({**settings, **more}))
        Names.write(self.progress / "images.arrow", names)
        return 0

    def _found(self) -> dict[str, Any] | None:
        """The settings of the prediction that is there."""
        if self.path.exists() and not self.path.is_dir():
            raise OSError(f"{str(self.path)!r} is a file; expected a folder or a path that does not exist yet.")
        file = self.path / SETTINGS_FILE
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("kind") == "prediction":
                return found
        # Killed in the first moment there is nothing but a beginning.
        begun = {PROGRESS_FOLDER, f".{SETTINGS_FILE}.tmp"}
        if self.path.exists() and any(entry.name not in begun for entry in self.path.iterdir()):
            raise OSError(f"{str(self.path)!r} is not empty and holds no prediction; choose another folder.")
        return None

    def _delete(self, found: dict[str, Any]):
        """What a prediction with these settings writes, and nothing else."""
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
                with contextlib.suppress(OSError):  # something else lies there
                    os.rmdir(folder)

    def finish(self):
        """One table of all parts, read and written bit by bit; the parts are deleted."""
        missing = self.missing()
        if missing:
            raise OSError(
                f"{len(missing)} parts are missing in {str(self.progress)!r}; expected a folder that all processes "
                "and machines see. Start again with the same arguments."
            )
        content = json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8"))
        schema = SCHEMA.with_metadata({"vip2clip_hf": json.dumps(content, ensure_ascii=False)})
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
        """Counts of the finished table."""
        counts = {"num_images": 0, "num_normal": 0, "num_anomalous": 0, "num_unreadable": 0}
        with pq.ParquetFile(self.table) as file:
            for batch in file.iter_batches(columns=["label", "error"]):
                counts["num_images"] += len(batch)
                counts["num_unreadable"] += len(batch) - batch["error"].null_count
                for label in LABELS:
                    counts[f"num_{label}"] += pc.sum(pc.equal(batch["label"], label)).as_py() or 0
        return {**counts, "table": str(self.table)}

    # All processes

    def open(self):
        """
        Raises:
            OSError: not all processes see the folder.
        """
        if not all(from_all((self.progress / "images.arrow").exists())):
            raise OSError(f"Expected a folder {str(self.path)!r} that all processes and machines see.")
        self.num_images = len(self.names)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_images // self.chunk_size)

    def positions(self, chunk: int) -> range:
        """Of the images of a chunk."""
        return range(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.num_images))

    def _part(self, chunk: int) -> Path:
        return self.progress / f"part-{chunk:09d}.parquet"

    def _chunks_there(self) -> Iterator[int]:
        with os.scandir(self.progress) as entries:
            for entry in entries:
                if match := _PART.fullmatch(entry.name):
                    yield int(match[1])

    def missing(self) -> list[int]:
        """Chunks that are not done."""
        left = np.ones(self.num_chunks, dtype=bool)
        for chunk in self._chunks_there():
            with contextlib.suppress(OSError, pa.ArrowInvalid):  # a file system that lost its content
                left[chunk] = pq.read_metadata(self._part(chunk)).num_rows != len(self.positions(chunk))
        return np.flatnonzero(left).tolist()

    def num_done(self) -> int:
        """Images of the chunks that are done."""
        return sum(len(self.positions(chunk)) for chunk in self._chunks_there())

    def write_part(self, chunk: int, rows: Sequence[dict[str, Any]]):
        columns = {"id": [as_text(self.names[position]) for position in self.positions(chunk)]}
        columns.update({name: [row.get(name) for row in rows] for name in SCHEMA.names if name != "id"})
        part = self._part(chunk)
        staged = part.with_name(f".{part.name}.tmp")
        pq.write_table(pa.table(columns, schema=SCHEMA), staged)
        os.replace(staged, part)

    def release(self):
        self.names.close()
        if self._lock is not None:
            self._lock.release()


def _explain(different: list[str], found: dict[str, Any], settings: dict[str, Any]) -> str:
    texts = []
    for key in different:
        if key == "ids_sha256":
            texts.append(f"another list of images ({found.get('num_images')} then, {settings['num_images']} now)")
        elif key != "num_images":
            then, now = json.dumps(found.get(key)), json.dumps(settings[key])
            texts.append(f"another {key}" + (f" ({then} then, {now} now)" if len(then + now) < 400 else ""))
    return " and ".join(texts)


def check_room(path: Path, num_maps: int, size: int):
    """
    Raises:
        OSError: the maps that are left to write do not fit on the disk.
    """
    needed, free = 2 * size * size * num_maps, shutil.disk_usage(path).free
    if needed > free:
        raise OSError(
            f"The maps need {needed / 1e9:.1f} GB in {str(path)!r}, where {free / 1e9:.1f} GB are free; choose "
            "another disk, or leave the maps out."
        )


__all__ = ["IMAGE_FOLDERS", "PredictionFolder", "check_room"]
