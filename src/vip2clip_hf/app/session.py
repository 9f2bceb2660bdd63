"""State of the web app for one visitor, and the memory that all visitors use."""

import threading
import time
import weakref
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from .good_photos import GoodPhotos
from .results import PhotoResult


# Memory for the features of good photos of all sessions together, in bytes.
KEPT_BYTES = 2 * 1024**3


@dataclass(eq=False)
class Session:
    """
    State of one visitor's session.

    Args:
        results (`list[PhotoResult]`): one result per photo, in upload order.
        problems (`list[tuple[str, str]]`): name and error of each upload without a result.
        selected (`int`, defaults to 0): index of the displayed photo in `results`.
        references ([`ReferenceBank`], *optional*, defaults to `"auto"`): photos of good parts to compare with, `None`,
            or `"auto"` for those of the checkpoint.
        good ([`GoodPhotos`], *optional*): what the uploaded good photos gave.
        thresholds (`tuple[float, float]`, *optional*): image and pixel threshold that were set by hand.
        forgotten (`bool`, defaults to `False`): whether the good photos were removed to free memory.
    """

    results: list[PhotoResult] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    selected: int = 0
    references: ReferenceBank | str | None = "auto"
    good: GoodPhotos | None = None
    thresholds: tuple[float, float] | None = None
    forgotten: bool = False

    def __post_init__(self) -> None:
        # Not fields: gradio converts the fields of a state to a dict, and a lock cannot be copied.
        self.used = time.monotonic()
        self.lock = threading.Lock()  # the events of a session change it one after the other

    def take(self, other: "Session") -> None:
        """
        Take over the state of another session.

        Args:
            other ([`Session`]): the session, made from this one with `dataclasses.replace`.
        """
        for one in fields(self):
            setattr(self, one.name, getattr(other, one.name))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        """Return a new session with a lock of its own: gradio copies the initial state for each visitor."""
        return replace(self)

    @property
    def decision(self) -> DecisionConfig | None:
        """Thresholds from the good photos, or `None` for those of the checkpoint."""
        return None if self.good is None else self.good.decision


class SessionMemory:
    """
    Limit the memory of the good photos of all sessions: those of the session that was not used for longest go first.

    Args:
        limit (`int`, defaults to 2 GiB): bytes of features of all sessions.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._lock = threading.Lock()

    def keep(self, session: Session) -> None:
        """
        Note that a session is in use, and make other sessions forget their good photos if memory is short.

        Args:
            session ([`Session`]): the session.
        """
        with self._lock:
            session.used = time.monotonic()
            self._sessions.add(session)
            own = id(session.references)
            banks: dict[int, int] = {}
            used: dict[int, float] = {}
            for one in self._sessions:
                if isinstance(one.references, ReferenceBank):
                    key = id(one.references)
                    banks[key], used[key] = one.references.nbytes, max(one.used, used.get(key, 0.0))
            for key in sorted(banks, key=lambda key: used[key]):
                if sum(banks.values()) <= self.limit:
                    break
                if key != own:
                    del banks[key]
                    self._forget(key)

    def _forget(self, key: int) -> None:
        for one in self._sessions:
            if id(one.references) == key:
                one.references, one.good, one.results, one.forgotten = "auto", None, [], True

    @property
    def nbytes(self) -> int:
        """Bytes of the features in all sessions."""
        with self._lock:
            banks = {id(one.references): one.references for one in self._sessions}
        return sum(bank.nbytes for bank in banks.values() if isinstance(bank, ReferenceBank))


__all__ = ["KEPT_BYTES", "Session", "SessionMemory"]
