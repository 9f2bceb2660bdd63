"""Read single rows of a Parquet file in order, without keeping a whole row group in memory."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from ..utils.extras import extra


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.parquet as pq


IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "content", "img", "jpg", "jpeg", "png")
ID_COLUMNS = ("image_id", "id", "__key__", "key")
# Rows per batch, batches that are kept for rows that are asked for out of order, and bytes per read.
ROWS, KEPT, BUFFER = 32, 8, 4 * 2**20


def columns_of(file: Any, shown: str) -> tuple[str, str | None]:
    """
    Find the columns of a Parquet file.

    Args:
        file: open file.
        shown (`str`): its name, for the error message.

    Returns:
        `tuple[str, str | None]`: column with images, and column with ids, if any.

    Raises:
        ValueError: if it is not a Parquet file, or no column contains images.
    """
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, pa.ArrowException) as error:
        raise ValueError(f"{shown!r} is not a valid Parquet file ({error}).") from error
    by_name = {name.lower(): name for name in reversed(schema.names)}
    images = [by_name[name] for name in IMAGE_COLUMNS if name in by_name and _has_bytes(schema.field(by_name[name]))]
    if not images:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"{shown!r} has the columns {found or 'none'}; expected 'image' or 'bytes' with the contents of image "
            "files. A table with paths is read from a local file."
        )
    return images[0], next((by_name[name] for name in ID_COLUMNS if name in by_name), None)


def _has_bytes(field: "pa.Field") -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _has_bytes(kind.field(kind.get_field_index("bytes")))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def ids_of(file: Any, shown: str) -> tuple[list[bytes], list[int], list[int]]:
    """
    List the rows of a Parquet file. Only the column with the ids is read.

    Args:
        file: open file.
        shown (`str`): its name, for error messages.

    Returns:
        `tuple[list[bytes], list[int], list[int]]`: id, row group, and row in the group, of each row.

    Raises:
        ValueError: if it is not a Parquet file, or no column contains images.
    """
    column = columns_of(file, shown)[1]
    opened = pq.ParquetFile(file)
    names: list[bytes] = []
    groups: list[int] = []
    rows: list[int] = []
    for group in range(opened.num_row_groups):
        count = opened.metadata.row_group(group).num_rows
        ids: list[Any] = [None] * count
        if column is not None:
            ids = opened.read_row_group(group, columns=[column])[column].to_pylist()
        for row, one in enumerate(ids):
            text = str(len(names)) if one is None or one in ("", b"") else one
            names.append(text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape"))
            groups.append(group)
            rows.append(row)
    return names, groups, rows


class RowReader:
    """
    Read the image of a row. Fast if the rows are asked for nearly in order.

    Args:
        file: open Parquet file.
        column (`str`): column with images.
    """

    def __init__(self, file: Any, column: str) -> None:
        self._file, self._column = file, column
        self._parquet = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        self._group, self._next = -1, 0
        self._batches: Iterator[Any] = iter(())
        self._kept: deque[tuple[int, Any]] = deque(maxlen=KEPT)

    def read(self, group: int, row: int) -> bytes | None:
        """
        Read a row.

        Args:
            group (`int`): number of the row group.
            row (`int`): row in the group.

        Returns:
            `bytes | None`: the contents of the image file, None if the cell is empty.

        Raises:
            OSError: if the file is damaged, or has fewer rows than before.
        """
        if group != self._group or row < (self._kept[0][0] if self._kept else self._next):
            if group >= self._parquet.num_row_groups:
                raise OSError(f"Row group {group} not found; the file was replaced by one with fewer rows.")
            self._group, self._next = group, 0
            self._kept.clear()
            self._batches = self._parquet.iter_batches(
                batch_size=ROWS, row_groups=[group], columns=[self._column], use_threads=False
            )
        while row >= self._next:
            batch = next(self._batches, None)
            if batch is None:
                raise OSError(f"Row {row} not found; the file was replaced by one with fewer rows.")
            self._kept.append((self._next, batch.column(0)))
            self._next += len(batch)
        start, values = next((start, values) for start, values in reversed(self._kept) if start <= row)
        if pa.types.is_struct(values.type):
            value = values[row - start]
            return value["bytes"].as_py() if value.is_valid else None
        return values[row - start].as_py()

    def close(self) -> None:
        """Close the file."""
        self._batches = iter(())
        self._parquet.close(force=True)
        self._file.close()


__all__ = ["RowReader", "columns_of", "ids_of"]
