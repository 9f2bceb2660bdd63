"""What every request passes: names of the server, origins, the API key, the log and metrics."""

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..utils.addresses import is_loopback
from .access_log import access_line, print_line
from .keys import same_key
from .metrics import ServerMetrics
from .settings import ServerSettings


logger = logging.getLogger(__name__)
# Paths that need no key: probes, and the description of the API, which is the same for everyone.
OPEN_PATHS = frozenset({"/", "/docs", "/health", "/openapi.json", "/ready"})
KNOWN_PATHS = OPEN_PATHS | {"/info", "/metrics", "/predict"}
# The pages of the server contain no scripts and load nothing.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def host_name(authority: str) -> str:
    """
    Return the host of a `Host` header or a URL, without the port.

    Args:
        authority (`str`): such as `"localhost:8000"` or `"[::1]:8000"`.

    Returns:
        `str`: the host in lower case, without brackets.
    """
    found = re.fullmatch(r"\[([^\]]*)\](?::\d*)?|([^:\[\]]*)(?::\d*)?", authority.strip().lower())
    return "" if found is None else (found[1] or found[2] or "").rstrip(".")


def given_key(headers: Headers) -> str | None:
    """
    Return the API key of a request: `Authorization: Bearer KEY` or `X-API-Key: KEY`.

    Args:
        headers (`Headers`): headers of the request.

    Returns:
        `str`, *optional*: the key.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


class Guard:
    """
    Middleware around the whole application.

    Refuses, in this order, requests with another host name (421, so that a web page cannot reach a server of this
    machine through a name of its own), from web pages of other origins (403), and without the key (401). Writes one
    line of JSON for each request, and metrics.

    Args:
        app (`ASGIApp`): the application.
        settings ([`ServerSettings`]): settings.
        metrics ([`ServerMetrics`]): metrics.
        local (`bool`): whether the server is bound to a loopback address.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: ServerMetrics, local: bool) -> None:
        self.app, self.settings, self.metrics, self.local = app, settings, metrics, local
        self._hosts = {host_name(host) for host in settings.allow_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, headers = time.perf_counter(), Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        refused = self._refuse(headers, scope["path"])
        try:
            await (self.app if refused is None else refused)(scope, receive, reply)
        except Exception:
            logger.exception("Request %s failed.", request_id)
            if status:
                raise
            await JSONResponse({"detail": "The server has failed; its log contains the reason."}, 500)(
                scope, receive, reply
            )
        finally:
            self._record(scope, request_id, status, time.perf_counter() - start, facts)

    def _refuse(self, headers: Headers, path: str) -> JSONResponse | None:
        """Return the response of a request that is not allowed."""
        host = host_name(headers.get("host", ""))
        if not self._is_known(host):
            return JSONResponse(
                {"detail": "The Host header names another server; see the option --allow-hosts of the server."}, 421
            )
        if path in OPEN_PATHS:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        own = {f"{scheme}://{headers.get('host', '').strip().lower()}" for scheme in ("http", "https")}
        if site not in ("none", "same-origin") or (origin is not None and origin.lower() not in own):
            return JSONResponse({"detail": "Requests from web pages of other servers are refused."}, 403)
        key = self.settings.api_key
        if key is not None and not same_key(given_key(headers), key):
            return JSONResponse(
                {"detail": "The API key is missing or wrong; expected the header 'Authorization: Bearer KEY'."},
                401,
                {"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
        return None

    def _is_known(self, host: str) -> bool:
        if host in self._hosts:
            return True
        return is_loopback(host) if self.local else not self._hosts

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        self.metrics.requests.labels(path, method, str(facts.get("status", status))).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        if self.settings.access_log:
            print_line(access_line(scope, request_id, status, seconds, facts))


__all__ = ["KNOWN_PATHS", "OPEN_PATHS", "Guard", "given_key", "host_name"]
