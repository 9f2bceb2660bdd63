"""Events of the operating system about the files of a folder, and where they are not to be relied on."""

import contextlib
import os
import re
import threading
from pathlib import Path
from typing import Any

from ..utils.extras import extra


# File systems whose changes by other machines cause no events here.
_REMOTE = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|beegfs|gpfs|davfs|vboxsf|vmhgfs|virtiofs|prl_fs|fuse(\..+)?"
)
_MOUNTS = Path("/proc/self/mountinfo")


def remote_file_system(folder: str | os.PathLike[str]) -> str | None:
    """
    Check whether a folder is on another machine, so that events may be missing. Known for Linux only.

    Args:
        folder (`str` or `os.PathLike`): the folder.

    Returns:
        `str`, *optional*: type of its file system, such as `"cifs"`. `None` if it is local or not known.
    """
    if os.fspath(folder).startswith("\\\\"):  # Windows
        return "network share"
    real = os.path.realpath(folder)
    longest, kind = -1, ""
    with contextlib.suppress(OSError):
        for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            fields, _, more = line.partition(" - ")
            # Spaces are written as \040.
            place = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields.split()[4])
            inside = real == place or real.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= longest:  # a later mount hides an earlier one
                longest, kind = len(place), more.split()[0]
    return kind if _REMOTE.fullmatch(kind) else None


class FolderEvents:
    """
    Names of files that changed, collected in a thread.

    Args:
        root (`str`): folder to watch.
        recursive (`bool`): whether to watch subfolders.

    Raises:
        ImportError: if watchdog is not installed.
    """

    def __init__(self, root: str, recursive: bool) -> None:
        with extra("watch", "Watching a folder without polling"):
            from watchdog.events import FileSystemEventHandler
            from watchdog.observers import Observer

        self._root, self._recursive = os.path.realpath(root), recursive
        self._new_observer = Observer
        self._observer: Any = None
        self._identity: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._rescan = False
        self._something = threading.Event()
        events = self

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                events._add(event)

        self._handler = Handler()

    def start(self) -> None:
        """
        Start to collect.

        Raises:
            OSError: if the system refuses, for example because of the limit of watched folders.
        """
        self._identity = _identity(self._root)
        observer = self._new_observer()
        observer.schedule(self._handler, self._root, recursive=self._recursive)
        observer.start()
        self._observer = observer

    def stop(self) -> None:
        """Stop to collect."""
        if self._observer is not None:
            with contextlib.suppress(Exception):  # the folder may be gone
                self._observer.stop()
                self._observer.join(5)
            self._observer = None

    def is_alive(self) -> bool:
        """Whether events of the folder are collected. Not if it was replaced by another one with the same name."""
        if self._observer is None or not self._observer.is_alive() or _identity(self._root) != self._identity:
            return False
        emitters = self._observer.emitters
        return bool(emitters) and all(emitter.is_alive() for emitter in emitters)

    def wait(self, seconds: float) -> None:
        """Wait for an event, but not longer than a time in seconds."""
        self._something.wait(seconds)

    def take(self) -> tuple[set[str], bool]:
        """
        Take what was collected.

        Returns:
            `tuple[set[str], bool]`: paths below the folder of files that changed, with forward slashes, and whether
            a folder appeared or was moved, so that there can be more.
        """
        self._something.clear()
        with self._lock:
            names, self._names = self._names, set()
            rescan, self._rescan = self._rescan, False
        return names, rescan

    def _add(self, event: Any) -> None:
        if event.event_type in ("opened", "closed_no_write", "deleted"):
            return
        if event.is_directory and event.event_type == "modified":  # its entries have events themselves
            return
        with self._lock:
            if event.is_directory:
                self._rescan = True
            else:
                for path in (event.src_path, getattr(event, "dest_path", "")):
                    if path:
                        name = os.path.relpath(os.fsdecode(path), self._root)
                        self._names.add(name.replace(os.sep, "/"))
        self._something.set()


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


__all__ = ["FolderEvents", "remote_file_system"]
