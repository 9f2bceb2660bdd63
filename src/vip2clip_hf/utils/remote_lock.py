"""Lock of a folder in a store: an object that its owner renews, because a store has no locks."""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid

from transformers.utils import logging

from .remote import RemoteFolder, StoreError
from .serialization import to_json


logger = logging.get_logger(__name__)
# Seconds between two renewals, and without one until another program may take the lock.
RENEW, EXPIRES = 30.0, 300.0
# Seconds to wait before an owner makes sure that no other program took the lock at the same time.
SETTLE = 1.0


class RemoteLock:
    """
    Lock of a folder in a store.

    The lock is an object with the name of its owner and the time. On S3, Google Cloud Storage and in memory, only one
    program can create it; elsewhere, two programs that start in the same second may both think that they own it for up
    to a second. A thread renews it. A lock that was not renewed for five minutes, or whose program has ended on the
    same machine, is taken over.

    Args:
        folder ([`RemoteFolder`]): the folder.
        name (`str`): path of the lock below it.

    Attributes:
        lost (`bool`): whether another program has taken the lock, as far as it is known.
    """

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self.folder, self.name = folder, name
        self.owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = False

    def acquire(self) -> None:
        """
        Take the lock.

        Raises:
            OSError: if another program holds it.
            StoreError: if the store cannot be reached, or refuses access.
        """
        for _ in range(3):
            if self.folder.create(self.name, self._content()):
                break
            found = self._read()
            if found is not None and not _is_stale(found):
                self._refuse(found)
            self.folder.delete(self.name)
        if self.folder.scheme != "memory":
            time.sleep(SETTLE)  # another program may have deleted a stale lock and created its own
        if (found := self._read()) is None or found.get("owner") != self.owner:
            self._refuse(found or {})
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        Check that this program still has the lock.

        Raises:
            OSError: if another program has taken it.
            StoreError: if the store cannot be reached, or refuses access.
        """
        found = self._read()
        if self.lost or found is None or found.get("owner") != self.owner:
            raise OSError(
                f"Another program has taken over {self.folder.url!r}, because this one could not renew its lock for "
                f"{EXPIRES / 60:.0f} minutes or the lock was deleted. To resume, wait until the other program has "
                "finished and run the same command again."
            )

    def release(self) -> None:
        """Delete the lock, if this program has it."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            if (self._read() or {}).get("owner") == self.owner:
                self.folder.delete(self.name)
        except (StoreError, OSError) as error:  # often after an error with the same reason, which matters more
            logger.warning(f"The lock of {self.folder.url!r} could not be deleted ({error}); it expires.")

    def _content(self) -> bytes:
        content: dict = {"owner": self.owner, "host": socket.gethostname(), "machine": _machine()}
        content.update(pid=os.getpid(), time=time.time())
        return to_json(content).encode()

    def _read(self) -> dict | None:
        try:
            found = json.loads(self.folder.read(self.name))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _renew(self) -> None:
        while not self._stop.wait(RENEW):
            try:
                if (self._read() or {}).get("owner") != self.owner:
                    self.lost = True
                    return
                self.folder.write(self.name, self._content())
            except (StoreError, OSError):  # tried again; `check` finds out whether it was too late
                continue

    def _refuse(self, found: dict) -> None:
        seconds = max(0.0, time.time() - float(found.get("time") or time.time()))
        raise OSError(
            f"Another program is writing to {self.folder.url!r} (process {found.get('pid')} on {found.get('host')}, "
            f"last seen {seconds:.0f} s ago); wait until it has finished, or choose another folder. If it was killed, "
            f"the lock expires {EXPIRES / 60:.0f} minutes after that, or delete {self.name!r} in that folder."
        )


def _machine() -> str:
    """Identify the machine since its last start, and the container, because process ids are counted in each."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts.append(file.read())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _is_stale(found: dict) -> bool:
    """Whether the owner of a lock has ended, or has not renewed the lock for too long."""
    try:
        age, pid = time.time() - float(found["time"]), int(found["pid"])
    except (KeyError, TypeError, ValueError):
        return True
    if age > EXPIRES:
        return True
    if found.get("machine") != _machine() or os.name != "posix" or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


__all__ = ["EXPIRES", "RENEW", "RemoteLock"]
