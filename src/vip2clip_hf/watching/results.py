"""The table of a watched folder: a CSV file to which rows are appended, complete or not at all."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..reporting.predictions import COLUMNS as PHOTO_COLUMNS
from ..utils.csv_cells import safe_cell


RESULTS_NAME = "results.csv"
COLUMNS = (*PHOTO_COLUMNS, "time")
# How much of the end of a changed table is searched for a row.
TAIL = 1 << 20


class Write(NamedTuple):
    """
    Bytes to append to the table.

    Args:
        offset (`int`): size of the table before.
        content (`bytes`): the row, with the header in a new table.
    """

    offset: int
    content: bytes


def format_row(row: Mapping[str, Any]) -> bytes:
    """
    Format a row of the table.

    Args:
        row (`Mapping[str, Any]`): values by column. Missing values and `None` are empty cells.

    Returns:
        `bytes`: one line of CSV in UTF-8. Numbers have all their digits. Text has no line breaks, and a spreadsheet
        does not run it as a formula.
    """
    cells = []
    for column in COLUMNS:
        value = row.get(column)
        cells.append("" if value is None else repr(value) if isinstance(value, float) else safe_cell(str(value)))
    return _line(cells)


def _line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8")


HEADER = _line(list(COLUMNS))


class ResultsFile:
    """
    The table of a watched folder.

    Args:
        path (`pathlib.Path`): CSV file. It need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """
        Check that rows can be appended to the file.

        Raises:
            OSError: if the file has other columns or cannot be read.
        """
        with _opened(self.path) as file:
            first = file.readline(10_000)
        # A spreadsheet can add a byte order mark and quotes.
        names = next(csv.reader([first.decode("utf-8-sig", "replace")]), []) if first else list(COLUMNS)
        if tuple(names) != COLUMNS and not HEADER.startswith(first):  # a header that was cut off is completed
            raise OSError(
                f"{str(self.path)!r} begins with {first[:100]!r}; expected the columns {', '.join(COLUMNS)}. Move the "
                "file away to begin a new one."
            )

    def plan(self, line: bytes) -> Write:
        """
        Plan where to write a row.

        Args:
            line (`bytes`): result of [`format_row`].

        Returns:
            [`Write`]: what to append, with the header if there is none.

        Raises:
            OSError: if the file cannot be read.
        """
        with _opened(self.path) as file:
            size = file.seek(0, os.SEEK_END)
            if size <= len(HEADER):
                file.seek(0)
                start = file.read()
                if HEADER.startswith(start) and start != HEADER:  # new, or killed while writing the header
                    return Write(0, HEADER + line)
            file.seek(size - 1)
            if file.read(1) != b"\n":  # edited by a person
                line = b"\n" + line
        return Write(size, line)

    def append(self, write: Write) -> None:
        """
        Append to the file and wait until the disk has it.

        Args:
            write ([`Write`]): what to append.

        Raises:
            OSError: if the file cannot be written. Then it may end with a part of the row, see [`ResultsFile.repair`].
        """
        is_new = not self.path.exists()
        with open(self.path, "ab") as file:
            if file.tell() > write.offset:  # the header of a new table that was cut off
                file.truncate(write.offset)
            file.write(write.content)
            file.flush()
            os.fsync(file.fileno())
        if is_new and os.name == "posix":  # so the new file itself is there after a power failure
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def repair(self, write: Write) -> str:
        """
        Complete an append that may have been interrupted.

        Args:
            write ([`Write`]): the last append.

        Returns:
            `str`: `"complete"` if the row was there, `"missing"` or `"torn"` if it was not, or was only in part, and
            is there now, and `"moved"` if the table was changed by another program and the row was appended to it.

        Raises:
            OSError: if the file cannot be read or written.
        """
        with _opened(self.path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(write.offset, size))
            found = file.read(len(write.content))
            file.seek(max(0, size - TAIL))
            tail = file.read()
        if size >= write.offset and found == write.content:
            return "complete"
        line = write.content.removeprefix(HEADER).lstrip(b"\n")
        if b"\n" + line in tail or tail.startswith(line):  # at another place
            return "complete"
        # After a power failure, the end can consist of zeros.
        torn = size > write.offset and size - write.offset <= len(write.content)
        if size == write.offset or (torn and (write.content.startswith(found) or not found.strip(b"\0"))):
            self.append(write)
            return "torn" if torn else "missing"
        self.append(self.plan(line))
        return "moved"


class _Empty(io.BytesIO):
    """Stands for a file that does not exist."""


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return _Empty()


__all__ = ["COLUMNS", "HEADER", "RESULTS_NAME", "ResultsFile", "Write", "format_row"]
