"""What a watcher knows about the files of its folder, in a database that survives crashes."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .candidates import Signature
from .results import Write


_TABLES = """
CREATE TABLE IF NOT EXISTS settings (content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    name BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, digest TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unconfirmed (place INTEGER NOT NULL, content BLOB NOT NULL);
"""
_KNOW = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)"


class Known(NamedTuple):
    """
    A file with a row, or one that was there before the first start and is skipped.

    Args:
        signature ([`Signature`]): its signature.
        digest (`str`, *optional*): hash of its contents. `None` for a skipped file.
    """

    signature: Signature
    digest: str | None


class State:
    """
    Database of the files that have a row. Used by one process at a time.

    A row is recorded here first, with its place in the table, and written to the table then. A crash in between leaves
    an unconfirmed row, which is completed at the next start. So no row is lost or written twice.

    Args:
        path (`pathlib.Path`): SQLite file. It is created if it does not exist.

    Raises:
        OSError: if the file cannot be written, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._errors():
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)
            # Commits wait for the disk. Both work on any file system that can lock files.
            self._connection.execute("PRAGMA journal_mode=TRUNCATE")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_TABLES)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def settings(self) -> dict[str, Any] | None:
        """Settings of the first start. `None` before [`State.begin`]."""
        with self._errors():
            found = self._connection.execute("SELECT content FROM settings").fetchone()
        return None if found is None else json.loads(found[0])

    def begin(self, settings: dict[str, Any], skipped: Iterable[tuple[str, Signature]]) -> None:
        """
        Record the settings and the files to skip, both or none.

        Args:
            settings (`dict[str, Any]`): JSON-serializable settings.
            skipped (`Iterable[tuple[str, Signature]]`): name and signature of each file that gets no row.
        """
        with self._transaction() as database:
            database.execute("INSERT INTO settings VALUES (?)", [json.dumps(settings)])
            database.executemany(_KNOW, ((os.fsencode(name), *signature, None) for name, signature in skipped))

    def known(self, name: str) -> Known | None:
        """
        Look up a file.

        Args:
            name (`str`): name of the file.

        Returns:
            [`Known`], *optional*: its state at its last row. `None` if it has none.
        """
        with self._errors():
            found = self._connection.execute("SELECT * FROM files WHERE name = ?", [os.fsencode(name)]).fetchone()
        return None if found is None else Known(Signature(*found[1:5]), found[5])

    def update(self, name: str, known: Known) -> None:
        """
        Record a new signature of a file whose contents are the same, without a row.

        Args:
            name (`str`): name of the file.
            known ([`Known`]): its state.
        """
        with self._transaction() as database:
            database.execute(_KNOW, [os.fsencode(name), *known.signature, known.digest])

    def record(self, name: str, known: Known, write: Write) -> None:
        """
        Record a file and its row, which is written to the table next.

        Args:
            name (`str`): name of the file.
            known ([`Known`]): its state.
            write ([`Write`]): what will be appended to the table.
        """
        with self._transaction() as database:
            database.execute(_KNOW, [os.fsencode(name), *known.signature, known.digest])
            database.execute("DELETE FROM unconfirmed")
            database.execute("INSERT INTO unconfirmed VALUES (?, ?)", [write.offset, write.content])

    def unconfirmed(self) -> Write | None:
        """The last row, if it is not known to be in the table."""
        with self._errors():
            found = self._connection.execute("SELECT place, content FROM unconfirmed").fetchone()
        return None if found is None else Write(found[0], bytes(found[1]))

    def confirm(self) -> None:
        """Record that the last row is in the table."""
        with self._transaction() as database:
            database.execute("DELETE FROM unconfirmed")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise OSError(
                f"The state of the watcher in {str(self.path)!r} cannot be used ({error}); expected a file that this "
                "command wrote, on a disk with free space. If it is damaged, choose a new output folder."
            ) from error


__all__ = ["Known", "State"]
