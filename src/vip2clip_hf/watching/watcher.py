"""Find photos in a folder, wait until they are complete, score each once, and append its row."""

import logging
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from ..inference.single import reason_of
from ..utils.text import encodable, shown
from .candidates import Candidate, Candidates, Signature, signature_of
from .events import FolderEvents
from .folder import WatchFolder
from .reading import Contents, is_partly_filled, read_contents
from .results import COLUMNS, format_row
from .scanning import WatchedImages
from .scoring import Scorer, describe
from .state import Known


logger = logging.getLogger(__name__)
# Seconds between two listings of the folder: with events, which can be lost, and without.
RESCAN, DEFAULT_POLL = 60.0, 5.0
# Seconds between two attempts to write to a table that another program keeps open.
WRITE_AGAIN = 2.0
# Number of these attempts between two warnings.
WARN_AGAIN = 30
# Digest of a file that could not be read.
UNREADABLE = "unreadable"


def start_events(events: FolderEvents) -> bool:
    """
    Start to collect events, and warn if the system refuses.

    Args:
        events ([`FolderEvents`]): the events.

    Returns:
        `bool`: whether events are collected.
    """
    try:
        events.start()
    except OSError as error:  # such as the limit of watched folders, or of instances
        events.stop()
        logger.warning(f"No events from the system ({error}); listing the folder every {DEFAULT_POLL:g} s.")
        return False
    return True


class Watcher:
    """
    The work of [`watch_folder`], one step at a time.

    Args:
        scorer ([`Scorer`]): model and settings.
        images ([`WatchedImages`]): the folder.
        folder ([`WatchFolder`]): output folder, open.
        candidates ([`Candidates`]): keeps the files that are not complete.
        events ([`FolderEvents`], *optional*): tells which files changed. Without it, the folder is listed.
        rescan (`float`): seconds between two listings of the folder.
        clock (`Callable`, *optional*): returns a time in seconds.
        on_row (`Callable`, *optional*): called with each row after it was written.

    Attributes:
        counts (`dict[str, int]`): number of rows written by label, and `"error"`.
    """

    def __init__(
        self,
        scorer: Scorer,
        images: WatchedImages,
        folder: WatchFolder,
        candidates: Candidates,
        events: FolderEvents | None,
        rescan: float,
        clock: Callable[[], float] = time.monotonic,
        on_row: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.scorer, self.images, self.folder, self.candidates = scorer, images, folder, candidates
        self.events, self.rescan, self.clock, self.on_row = events, rescan, clock, on_row
        self.counts: dict[str, int] = {}
        self._known: dict[str, Signature] = {}
        self._next_scan = clock()
        self._is_lost = False
        self._is_confirmed = True

    def step(self, stopped: Callable[[], bool] = lambda: False) -> float:
        """
        List the folder if it is time for it, and look at one file.

        Args:
            stopped (`Callable`, *optional*): whether to stop. Asked while waiting for a table that is locked.

        Returns:
            `float`: seconds until there is something to do.

        Raises:
            OSError: if the output cannot be written.
            ModelError: if the model fails for any photo.
        """
        self._collect()
        if self.clock() >= self._next_scan:
            self._scan()
        candidate = self.candidates.pop(self.clock())
        if candidate is not None:
            self._look(candidate, stopped)
        else:
            self.confirm()
        due = self.candidates.next_due()
        times = [self._next_scan] if due is None else [self._next_scan, due]
        return max(0.0, min(times) - self.clock())

    def confirm(self) -> None:
        """Record that the last row is in the table. Not after each row, because it waits for the disk."""
        if not self._is_confirmed:
            self.folder.state.confirm()
            self._is_confirmed = True

    def _collect(self) -> None:
        if self.events is None:
            return
        names, rescan = self.events.take()
        for name in sorted(names):
            if self.images.accepts(name):
                self.candidates.add(name, self.clock())
        if rescan:
            self._next_scan = self.clock()

    def _scan(self) -> None:
        found: dict[str, Signature] = {}
        new: list[tuple[int, str]] = []
        try:
            for name in self.images.names():
                try:
                    signature = signature_of(os.stat(self.images.path(name)))
                except OSError:  # gone, or a link that leads nowhere
                    continue
                if self._known.get(name) == signature or self._is_known(name, signature):
                    found[name] = signature
                elif name not in self.candidates:
                    new.append((signature.mtime_ns, name))
                    found[name] = signature
        except OSError as error:
            if not self._is_lost:
                logger.warning(f"{self.images.root!r} cannot be read ({error.strerror or error}); trying again.")
            self._is_lost, self._next_scan = True, self.clock() + min(self.rescan, DEFAULT_POLL)
            return
        if self._is_lost:
            logger.info(f"{self.images.root!r} can be read again.")
        if self.events is not None and (self._is_lost or not self.events.is_alive()):
            logger.info(f"Watching {self.images.root!r} again.")
            self.events.stop()
            if not start_events(self.events):
                self.events, self.rescan = None, DEFAULT_POLL
        self._is_lost = False
        for _, name in sorted(new):
            self.candidates.add(name, self.clock(), found.pop(name))
        self._known = found
        self._next_scan = self.clock() + self.rescan

    def _is_known(self, name: str, signature: Signature) -> bool:
        known = self.folder.state.known(name)
        return known is not None and known.signature == signature

    def _look(self, candidate: Candidate, stopped: Callable[[], bool]) -> None:
        name, path = candidate.name, self.images.path(candidate.name)
        try:
            signature = signature_of(os.stat(path))
        except FileNotFoundError:
            self.candidates.drop(candidate)
            if candidate.signature is not None:
                logger.info(f"{shown(name)}: removed before it was read")
            return
        except OSError as error:  # no right to look into a folder, or the share is gone for a while
            self._failed(candidate, Signature(0, 0, 0, 0), error, stopped)
            return
        if self._is_known(name, signature):
            self.candidates.drop(candidate)
            self._known[name] = signature
            return
        if not self.candidates.looked(candidate, signature, self.clock()):
            return
        try:
            contents = read_contents(path)
        except FileNotFoundError:
            self.candidates.drop(candidate)
            return
        except OSError as error:
            self._failed(candidate, signature, error, stopped)
            return
        if contents.signature != signature:  # changed while it was read
            self.candidates.looked(candidate, contents.signature, self.clock())
            return
        if len(contents.data) != signature.size and not self.candidates.is_over(candidate, self.clock()):
            # A share can report an old size for a while.
            self.candidates.fail(candidate, "its size is not known yet", self.clock(), retry=True)
            return
        self._process(candidate, contents, stopped)

    def _failed(self, candidate: Candidate, signature: Signature, error: OSError, stopped: Callable[[], bool]) -> None:
        """The file cannot be opened. This can be for a moment only, for example while it is checked for viruses."""
        if signature != candidate.signature:
            candidate.signature, candidate.since = signature, self.clock()
        if not self.candidates.is_over(candidate, self.clock()):
            self.candidates.fail(candidate, str(error), self.clock(), retry=True)
            return
        known = self.folder.state.known(candidate.name)
        if known is None or known.digest != UNREADABLE:
            path = self.images.path(candidate.name)
            row = {"error": reason_of(OSError(f"{path!r} cannot be read ({error.strerror or error})."))}
            self._write(candidate.name, row, Known(signature, UNREADABLE), stopped)
        self.candidates.drop(candidate)

    def _process(self, candidate: Candidate, contents: Contents, stopped: Callable[[], bool]) -> None:
        name, known = candidate.name, self.folder.state.known(candidate.name)
        now_known = Known(contents.signature, contents.digest)
        if known is not None and known.digest == contents.digest:
            self.folder.state.update(name, now_known)
            self.candidates.drop(candidate)
            return
        start = time.monotonic()
        is_over = self.candidates.is_over(candidate, self.clock())
        try:
            if is_partly_filled(contents.data) and not is_over:
                raise OSError("the end of the file is missing")
            image = self.scorer.load(contents.data, self.images.path(name))
        except (OSError, ValueError, MemoryError) as error:
            # A ValueError is about the kind of the photo, not about its end: waiting does not help.
            if isinstance(error, OSError) and not is_over:
                if candidate.failed is None:
                    logger.info(f"{shown(name)}: not complete yet, waiting ({shown(str(error))})")
                self.candidates.fail(candidate, str(error), self.clock())
                return
            row: dict[str, Any] = {"error": reason_of(error) or type(error).__name__}
        else:
            row = self._score(name, image, contents.digest)
        self._write(name, row, now_known, stopped, time.monotonic() - start)
        self.candidates.drop(candidate)

    def _score(self, name: str, image: Any, digest: str) -> dict[str, Any]:
        try:
            row, heatmap = self.scorer.score(image)
        except Exception as error:
            logger.error(f"{shown(name)}: the model failed: {shown(describe(error))}")
            self.scorer.probe()  # if it fails too, the photo is left for the next start
            return {"error": f"The model failed: {describe(error)}"}
        if heatmap is not None:
            self.folder.save_heatmap(heatmap, self.folder.heatmap(name, digest))
        return row

    def _write(
        self, name: str, row: dict[str, Any], known: Known, stopped: Callable[[], bool], seconds: float = 0.0
    ) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row = {**dict.fromkeys(COLUMNS), "id": encodable(name), **row, "time": now}
        line = format_row(row)
        table, state = self.folder.table, self.folder.state
        attempt = 0
        while True:
            try:
                write = table.plan(line)
                state.record(name, known, write)
                table.append(write)
                break
            except PermissionError as error:  # on Windows, while it is open in a spreadsheet
                if attempt % WARN_AGAIN == 0:
                    logger.warning(f"{str(table.path)!r} cannot be written ({error.strerror}); waiting until it can.")
                attempt += 1
                if stopped():
                    raise
                time.sleep(WRITE_AGAIN)
        self._is_confirmed = False
        self._known[name] = known.signature
        label = row["label"] if row["error"] is None else "error"
        self.counts[label] = self.counts.get(label, 0) + 1
        if row["error"] is not None:
            logger.warning(f"{shown(name)}: {shown(row['error'])}")
        else:
            p_value = "" if row["p_value"] is None else f", p-value {row['p_value']:.3g}"
            logger.info(f"{shown(name)}: {row['score']:.3f} {row['label']}{p_value} ({seconds:.2f} s)")
        if self.on_row is not None:
            self.on_row(row)


__all__ = ["DEFAULT_POLL", "RESCAN", "Watcher", "start_events"]
