"""Files that may still be written: which of them have not changed for long enough to be read."""

import heapq
import itertools
import os
from dataclasses import dataclass
from typing import NamedTuple


class Signature(NamedTuple):
    """
    What changes when a file is written or replaced.

    Args:
        size (`int`): size in bytes.
        mtime_ns (`int`): time of the last change of the contents.
        ctime_ns (`int`): time of the last change of the file; on Windows, time of its creation.
        inode (`int`): number of the file on its file system.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def signature_of(found: os.stat_result) -> Signature:
    """
    Get the signature of a file.

    Args:
        found (`os.stat_result`): result of `os.stat` or `os.fstat`.

    Returns:
        [`Signature`]: the signature. All values fit into 64 bits with a sign.
    """
    return Signature(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1))


@dataclass
class Candidate:
    """
    A file that is not known yet.

    Args:
        name (`str`): name of the file.
        due (`float`): time of the next look at it, in seconds.
        signature ([`Signature`], *optional*): its signature at the last look.
        since (`float`): time of the first look with this signature.
        failed (`str`, *optional*): why it could not be read with this signature.
        retry (`bool`): whether reading it again can help without a change of the file.
    """

    name: str
    due: float
    signature: Signature | None = None
    since: float = 0.0
    failed: str | None = None
    retry: bool = False


class Candidates:
    """
    Files to look at, by the time of the next look.

    Args:
        settle (`float`): seconds without a change after which a file is complete.
        give_up (`float`): seconds without a change after which a file that cannot be read is reported.
    """

    def __init__(self, settle: float, give_up: float) -> None:
        self.settle, self.give_up = settle, max(settle, give_up)
        self._found: dict[str, Candidate] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def add(self, name: str, now: float, signature: Signature | None = None) -> None:
        """
        Look at a file soon. Nothing changes if it is a candidate already and will be looked at earlier.

        Args:
            name (`str`): name of the file.
            now (`float`): time, in seconds.
            signature ([`Signature`], *optional*): its signature, if it is known.
        """
        candidate = self._found.get(name)
        if candidate is None:
            candidate = self._found[name] = Candidate(name, now, signature, now)
            self._push(candidate, now if signature is None else now + self.settle)
        elif candidate.due > now + self.settle:
            self._push(candidate, now)

    def drop(self, candidate: Candidate) -> None:
        """Forget a candidate: it is known now, or gone."""
        self._found.pop(candidate.name, None)

    def next_due(self) -> float | None:
        """Time of the next look at a file, or `None` without candidates."""
        self._skip()
        return self._queue[0][0] if self._queue else None

    def pop(self, now: float) -> Candidate | None:
        """
        Take a candidate to look at. It stays a candidate: call [`Candidates.looked`] or [`Candidates.drop`] for it.

        Args:
            now (`float`): time, in seconds.

        Returns:
            [`Candidate`], *optional*: the one to look at, or `None` if it is too early for all.
        """
        self._skip()
        if not self._queue or self._queue[0][0] > now:
            return None
        return self._found[heapq.heappop(self._queue)[2]]

    def looked(self, candidate: Candidate, signature: Signature, now: float) -> bool:
        """
        Record a look at a candidate.

        Args:
            candidate ([`Candidate`]): the candidate.
            signature ([`Signature`]): its signature now.
            now (`float`): time, in seconds.

        Returns:
            `bool`: whether the file is to be read now. If not, the next look is planned.
        """
        if signature != candidate.signature:
            candidate.signature, candidate.since = signature, now
            candidate.failed, candidate.retry = None, False
            self._push(candidate, now + self.settle)
            return False
        if now < candidate.since + self.settle:
            self._push(candidate, candidate.since + self.settle)
            return False
        if candidate.failed is not None and not candidate.retry and not self.is_over(candidate, now):
            self._push(candidate, self._next_look(candidate, now))
            return False
        return True

    def fail(self, candidate: Candidate, reason: str, now: float, retry: bool = False) -> None:
        """
        Record that a candidate cannot be read yet, and plan the next look.

        Args:
            candidate ([`Candidate`]): the candidate.
            reason (`str`): why it cannot be read.
            now (`float`): time, in seconds.
            retry (`bool`, defaults to `False`): whether reading it again can help without a change of the file.
        """
        candidate.failed, candidate.retry = reason, retry
        self._push(candidate, self._next_look(candidate, now))

    def is_over(self, candidate: Candidate, now: float) -> bool:
        """Whether a candidate has not changed for so long that it is not expected to become readable."""
        return now >= candidate.since + self.give_up

    def _next_look(self, candidate: Candidate, now: float) -> float:
        step = max(self.settle, 0.5)
        end = candidate.since + self.give_up
        return min(now + step, end) if end > now else now + step

    def _push(self, candidate: Candidate, due: float) -> None:
        candidate.due = due
        heapq.heappush(self._queue, (due, next(self._order), candidate.name))

    def _skip(self) -> None:
        """Remove entries of the queue that are not valid any more."""
        while self._queue:
            due, _, name = self._queue[0]
            candidate = self._found.get(name)
            if candidate is not None and candidate.due == due:
                return
            heapq.heappop(self._queue)


__all__ = ["Candidate", "Candidates", "Signature", "signature_of"]
