"""Report what is converted or guessed when an image is read: once in the log, or to a caller that collects it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .logging_vip2clip import get_logger


logger = get_logger(__name__)
_collected: ContextVar[list[str] | None] = ContextVar("_collected", default=None)


def notice(message: str) -> None:
    """
    Report a conversion or a guess.

    Args:
        message (`str`): the message. It is logged once, unless it is collected.
    """
    collected = _collected.get()
    if collected is None:
        logger.warning_once(message)
    else:
        collected.append(message)


@contextmanager
def collect_notices() -> Iterator[list[str]]:
    """
    Collect the messages of this thread instead of logging them, for a report of each image.

    Yields:
        `list[str]`: messages so far.
    """
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


__all__ = ["collect_notices", "notice"]
