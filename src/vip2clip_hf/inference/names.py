"""Names of all images of a prediction in a memory-mapped file, so that a million names use hardly any memory."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..utils.extras import extra


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa


BATCH = 65536


class Names:
    """
    Names of all images, memory-mapped from a file. Processes share the memory.

    Args:
        path (`pathlib.Path`): file written by [`Names.write`]. It is opened on first use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: pa.Table | None = None

    @staticmethod
    def write(path: Path, names: "pa.ChunkedArray", known: "pa.Table | None" = None) -> None:
        """
        Write names to a file, under a new plan id.

        Args:
            path (`pathlib.Path`): Arrow file to write; an existing file is replaced.
            names (`pyarrow.ChunkedArray` of bytes): the names.
            known (`pyarrow.Table`, *optional*): columns with the results of images that are already predicted, null
                for the others, and the boolean column `known`.
        """
        staged = path.with_name(f".{path.name}.tmp")
        table = pa.table({"name": names})
        if known is not None:
            for column in known.column_names:
                table = table.append_column(known.field(column), known[column])
        table = table.replace_schema_metadata({"plan": uuid.uuid4().hex})
        with pa.OSFile(str(staged), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=BATCH)
        with open(staged, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(staged, path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_table": None}  # each worker maps the file itself

    def table(self) -> "pa.Table":
        """
        Map the file.

        Returns:
            `pyarrow.Table`: the names, and the results of images that are already predicted, if any.
        """
        if self._table is None:
            self._table = pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()
        return self._table

    @property
    def plan(self) -> str:
        """Id of the plan."""
        return (self.table().schema.metadata or {}).get(b"plan", b"").decode()

    def __len__(self) -> int:
        return len(self.table())

    def __getitem__(self, position: int) -> bytes:
        return self.table()["name"][position].as_py()

    def close(self) -> None:
        """Close the file. It is opened again on next use."""
        self._table = None


def checksum(names: "pa.ChunkedArray") -> str:
    """
    Compute a checksum of a list of names.

    Args:
        names (`pyarrow.ChunkedArray` of bytes): the names.

    Returns:
        `str`: SHA-256 of all names, each followed by a zero byte, as hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in unpacked(names):
        digest.update(name + b"\0")
    return digest.hexdigest()


def as_text(name: bytes) -> str:
    """
    Convert a name to the id in the table.

    Args:
        name (`bytes`): the name.

    Returns:
        `str`: the name decoded as UTF-8; invalid bytes are written as `\\xff`.
    """
    return name.decode("utf-8", "backslashreplace")


def packed(names: Iterable[bytes]) -> "pa.ChunkedArray":
    """
    Collect names in an Arrow array, which uses less memory than a list.

    Args:
        names (`Iterable[bytes]`): the names.

    Returns:
        `pyarrow.ChunkedArray` of bytes: the names, in chunks of 65,536.
    """
    chunks, collected = [], []
    for name in names:
        collected.append(name)
        if len(collected) == BATCH:
            chunks.append(pa.array(collected, pa.binary()))
            collected = []
    return pa.chunked_array([*chunks, pa.array(collected, pa.binary())], pa.binary())


def unpacked(names: "pa.ChunkedArray") -> Iterator[bytes]:
    """
    Iterate over names in an Arrow array.

    Args:
        names (`pyarrow.ChunkedArray` of bytes): the names.

    Yields:
        `bytes`: the next name.
    """
    for start in range(0, len(names), BATCH):
        yield from names.slice(start, BATCH).to_pylist()


__all__ = ["Names", "as_text", "checksum", "packed", "unpacked"]
