"""Names of all images of a prediction in a memory-mapped file, so that a million names use hardly any memory."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..utils.extras import extra
from ..utils.files import file_names


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa


BATCH = 65536
# Longest file name that common file systems accept, minus room for an extension.
LONGEST_FILE_NAME = 240
# Prefix of the columns that tell where an image is.
_LOCATION = "at "


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
    def write(
        path: Path, names: "pa.ChunkedArray", known: "pa.Table | None" = None, locations: "pa.Table | None" = None
    ) -> None:
        """
        Write names to a file, under a new plan id.

        Args:
            path (`pathlib.Path`): Arrow file to write; an existing file is replaced.
            names (`pyarrow.ChunkedArray` of bytes): the names.
            known (`pyarrow.Table`, *optional*): columns with the results of images that are already predicted, null
                for the others, and the boolean column `known`.
            locations (`pyarrow.Table`, *optional*): where each image is, as integers.
        """
        staged = path.with_name(f".{path.name}.tmp")
        table = pa.table({"name": names})
        if known is not None:
            for column in known.column_names:
                table = table.append_column(known.field(column), known[column])
        if locations is not None:
            for column in locations.column_names:
                table = table.append_column(f"{_LOCATION}{column}", locations[column])
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

    def locations(self) -> "pa.Table | None":
        """
        Return where the images are.

        Returns:
            `pyarrow.Table`: columns of integers, one row per image; None if the names tell.
        """
        table = self.table()
        columns = [name for name in table.column_names if name.startswith(_LOCATION)]
        if not columns:
            return None
        return table.select(columns).rename_columns([name.removeprefix(_LOCATION) for name in columns])

    def location(self, position: int) -> tuple[int, ...]:
        """
        Return where an image is.

        Args:
            position (`int`): position of the image.

        Returns:
            `tuple[int, ...]`: row of the locations; empty if the name tells.
        """
        locations = self.locations()
        return () if locations is None else tuple(column[position].as_py() for column in locations.columns)

    def __len__(self) -> int:
        return len(self.table())

    def __getitem__(self, position: int) -> bytes:
        return self.table()["name"][position].as_py()

    def close(self) -> None:
        """Close the file. It is opened again on next use."""
        self._table = None


class SomeNames:
    """
    Names of some images, for a process that does not see the file with all of them.

    Args:
        names (`dict[int, bytes]`): name by position.
        locations (`dict[int, tuple[int, ...]]`): row of the locations by position; empty if the names tell.
    """

    def __init__(self, names: dict[int, bytes], locations: dict[int, tuple[int, ...]]) -> None:
        self.names, self.locations = names, locations

    def __getitem__(self, position: int) -> bytes:
        return self.names[position]

    def location(self, position: int) -> tuple[int, ...]:
        """Where an image is, see [`Names.location`]."""
        return self.locations.get(position, ())


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


def file_by_name(position: int, name: bytes) -> str:
    """
    Choose where to write the files of an image of a folder, such as its heatmap.

    Args:
        position (`int`): position of the image.
        name (`bytes`): name of the image.

    Returns:
        `str`: relative path without extension. Long file names are shortened and get the position.
    """
    folder, slash, last = name.rpartition(b"/")
    if len(last) > LONGEST_FILE_NAME:
        last = last[: LONGEST_FILE_NAME - 40].decode("utf-8", "ignore").encode() + b"-%09d" % position
    return os.fsdecode(folder + slash + last)


def file_by_position(position: int, name: bytes) -> str:
    """
    Choose where to write the files of an image of a dataset, such as its heatmap.

    Args:
        position (`int`): row number.
        name (`bytes`): name of the image.

    Returns:
        `str`: file name without extension: the row number and a safe form of the name.
    """
    text = as_text(name)
    safe = file_names([text])[text].encode()[: LONGEST_FILE_NAME - 40].decode("utf-8", "ignore")
    return f"{position:09d}-{safe}"


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


__all__ = ["Names", "SomeNames", "as_text", "checksum", "file_by_name", "file_by_position", "packed", "unpacked"]
