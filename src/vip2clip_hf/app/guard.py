"""Requests to the web app: refuse those that make the server load from other servers, and free closed sessions."""

import re
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from ..utils.extras import extra


with extra("app", "The web app"):
    import gradio as gr

# How long the state of a session is kept after its page was closed. A locked phone also closes the connection.
KEPT_CLOSED = 900.0
_HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([A-Za-z0-9]+)/?$")
_FILE = re.compile(r"/(file|proxy)=(.*)", re.DOTALL)
_REFUSED = b"This server does not load files from other servers."
Message = MutableMapping[str, Any]


def is_remote(path: str) -> bool:
    """
    Check whether a path is a URL.

    Args:
        path (`str`): path of a file.

    Returns:
        `bool`: whether it is one, also percent-encoded.
    """
    for _ in range(3):
        path = unquote(path)
    # A drive of Windows is a single letter.
    return re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+:", path) is not None


def refuse_urls(block: Any) -> None:
    """
    Make a component refuse URLs instead of files. Gradio downloads them otherwise.

    Args:
        block (`gradio.blocks.Block`): the component; it is changed.
    """
    keep = block.async_move_resource_to_block_cache

    async def refuse(path: Any) -> Any:
        if isinstance(path, str) and is_remote(path):
            message = f"{path!r} is a URL; expected a file. The server loads nothing from other servers."
            raise gr.Error(message, print_exception=False)
        return await keep(path)

    block.async_move_resource_to_block_cache = refuse


class Guard:
    """
    ASGI middleware of the app. Refuses requests that make the server load from other servers, and frees the state of a
    session some time after its last connection was closed.

    Args:
        app (`Callable`): the application.
        free (`Callable[[str], None]`): frees the state of a session, by its name.
        kept (`float`, defaults to 900): seconds until then.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], free: Callable[[str], None], kept: float = KEPT_CLOSED
    ) -> None:
        self.app, self.free, self.kept = app, free, kept
        self._open: dict[str, int] = {}
        self._timers: dict[str, threading.Timer] = {}
        self._lock = threading.Lock()

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        path = scope.get("path", "") if scope["type"] == "http" else ""
        asked = _FILE.search(path)
        if asked is not None and is_remote(asked[2]):
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(_REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSED})
            return
        found = _HEARTBEAT.search(path)
        if found is None:
            await self.app(scope, receive, send)
            return
        self._opened(found[1])
        try:
            await self.app(scope, receive, send)
        finally:
            self._closed(found[1])

    def _opened(self, name: str) -> None:
        with self._lock:
            self._open[name] = self._open.get(name, 0) + 1
            timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _closed(self, name: str) -> None:
        with self._lock:
            self._open[name] -= 1
            if self._open[name]:
                return
            del self._open[name]
            timer = self._timers[name] = threading.Timer(self.kept, self._expired, [name])
            timer.daemon = True
            timer.start()

    def _expired(self, name: str) -> None:
        with self._lock:
            self._timers.pop(name, None)
            if name in self._open:
                return
        self.free(name)


__all__ = ["KEPT_CLOSED", "Guard", "is_remote", "refuse_urls"]
