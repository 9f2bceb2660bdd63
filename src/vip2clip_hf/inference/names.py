"""The names of all images of a prediction, in a memory-mapped file: a million of them take no memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..utils.extras import extra


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa


BATCH = 65536


class Names:
    """
    The names of all images, in a file that processes map into their memory.

    Args:
        path (`Path`): what [`Names.write`] has written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._column: pa.ChunkedArray | None = None

    @staticmethod
    def write(path: Path, names: "pa.ChunkedArray"):
        staged = path.with_name(f".{path.name}.tmp")
        table = pa.table({"name": names})
        with pa.OSFile(str(staged), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=BATCH)
        os.replace(staged, path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_column": None}  # a worker maps the file itself

    def _opened(self) -> "pa.ChunkedArray":
        if self._column is None:
            self._column = pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()["name"]
        return self._column

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, position: int) -> bytes:
        return self._opened()[position].as_py()

    def close(self):
        self._column = None


def checksum(names: "pa.ChunkedArray") -> str:
    """SHA-256 of all names, each with a zero byte behind it."""
    digest = hashlib.sha256()
    for name in unpacked(names):
        digest.update(name + b"\0")
    return digest.hexdigest()


def as_text(name: bytes) -> str:
    """A name as the table has it; bytes that are no text as \\xff."""
    return name.decode("utf-8", "backslashreplace")


def packed(names: Iterable[bytes]) -> "pa.ChunkedArray":
    chunks, collected = [], []
    for name in names:
        collected.append(name)
        if len(collected) == BATCH:
            chunks.append(pa.array(collected, pa.binary()))
            collected = []
    return pa.chunked_array([*chunks, pa.array(collected, pa.binary())], pa.binary())


def unpacked(names: "pa.ChunkedArray") -> Iterator[bytes]:
    for start in range(0, len(names), BATCH):
        yield from names.slice(start, BATCH).to_pylist()


__all__ = ["Names", "as_text", "checksum", "packed", "unpacked"]
