"""Fetch photos from URLs of allowed hosts, and from nowhere else.

The address is checked after the name is resolved, and the connection goes to this address: a name that resolves to
another address the next time does not matter. Proxies of the environment are not used.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from urllib.parse import SplitResult, urljoin, urlsplit

from .._version import __version__
from ..utils.addresses import is_private_network, is_public


PORTS = {"http": 80, "https": 443}
MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 64 * 1024


class FetchError(Exception):
    """
    A URL that is not fetched.

    Args:
        status (`int`): status of HTTP for the client of the server.
        message (`str`): reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UrlFetcher:
    """
    Fetch photos from allowed hosts.

    Args:
        hosts (`Collection[str]`): allowed hosts, as `host` (ports 80 and 443) or `host:port`.
        max_bytes (`int`): maximum size of a photo.
        timeout (`float`): seconds for one photo, with all redirects.
        allow_private (`bool`, defaults to `False`): whether hosts may have addresses of a private network.
    """

    def __init__(self, hosts: Collection[str], max_bytes: int, timeout: float, allow_private: bool = False) -> None:
        self.max_bytes, self.timeout, self.allow_private = max_bytes, timeout, allow_private
        self._hosts = frozenset(host.lower() for host in hosts)

    def check(self, url: str) -> SplitResult:
        """
        Check that a URL belongs to an allowed host.

        Args:
            url (`str`): the URL.

        Returns:
            `urllib.parse.SplitResult`: its parts.

        Raises:
            FetchError: with status 422 if it is not a URL, or 403 if its host is not allowed.
        """
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > 4096:
            raise FetchError(422, "The URL contains characters that are not allowed; expected ASCII without spaces.")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise FetchError(422, f"The URL cannot be read ({error}).") from error
        if parts.scheme not in PORTS or not parts.hostname:
            raise FetchError(422, f"The URL starts with {url[:12]!r}; expected http:// or https:// and a host.")
        if "@" in parts.netloc:
            raise FetchError(422, "The URL contains a user name; expected a URL without one.")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        allowed = {f"{host}:{port or PORTS[parts.scheme]}"}
        if port is None or port == PORTS[parts.scheme]:
            allowed.add(host)
        if not allowed & self._hosts:
            raise FetchError(403, f"The host {host!r} is not allowed; see the option --allow-urls of the server.")
        return parts

    def fetch(self, url: str) -> bytes:
        """
        Fetch a photo.

        Args:
            url (`str`): the URL.

        Returns:
            `bytes`: the content.

        Raises:
            FetchError: if the URL is not allowed (403), or not a URL or not found (422), the content is too large
                (413), or the other server is too slow (504) or does not answer as expected (502).
        """
        deadline = time.monotonic() + self.timeout
        parts = self.check(url)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._request(parts, deadline)
            if isinstance(found, bytes):
                return found
            following = self.check(urljoin(parts.geturl(), found))
            if following.hostname != parts.hostname or (parts.scheme == "https" and following.scheme == "http"):
                raise FetchError(403, f"The host {parts.hostname!r} redirects to another one, which is not followed.")
            parts = following
        raise FetchError(502, f"The URL has more than {MAX_REDIRECTS} redirects.")

    def _request(self, parts: SplitResult, deadline: float) -> bytes | str:
        """Return the content, or where a redirect leads to."""
        host = parts.hostname or ""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close",
            "User-Agent": f"vip2clip/{__version__}",
        }  # fmt: skip
        connection = http.client.HTTPConnection(host, parts.port or PORTS[parts.scheme])
        try:
            sock = connection.sock = self._connect(host, connection.port, deadline)
            with _limited(sock, deadline):
                if parts.scheme == "https":
                    connection.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
                connection.request("GET", target, headers=headers)
                return self._content(connection.getresponse(), host, deadline)
        except FetchError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise FetchError(504, f"The host {host!r} did not answer within {self.timeout:g} s.") from error
            raise FetchError(502, f"The host {host!r} did not answer as expected ({_reason(error)}).") from error
        finally:
            connection.close()

    def _content(self, response: http.client.HTTPResponse, host: str, deadline: float) -> bytes | str:
        location = response.getheader("Location")
        if response.status in _REDIRECTS and location:
            return location
        if response.status != 200:
            status = 422 if response.status in (404, 410) else 502
            raise FetchError(status, f"The host {host!r} answered with status {response.status}; expected 200.")
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise FetchError(502, f"The host {host!r} sent compressed content; expected an image file.")
        length, content = response.length, bytearray()
        while length is None or length <= self.max_bytes:
            chunk = response.read1(_CHUNK)
            if not chunk:
                if time.monotonic() >= deadline:  # the connection was closed at the deadline
                    raise TimeoutError
                if length is not None and len(content) < length:
                    raise FetchError(502, f"The host {host!r} closed the connection too early.")
                return bytes(content)
            content += chunk
            if len(content) > self.max_bytes:
                break
        raise FetchError(413, f"The photo at {host!r} is larger than {self.max_bytes:,} bytes.")

    def _connect(self, host: str, port: int, deadline: float) -> socket.socket:
        """Connect to an address of a host, if all its addresses are allowed."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise FetchError(502, f"The host {host!r} was not found.") from error
        for *_, address in found:
            if not self._may_connect(str(address[0])):
                raise FetchError(403, f"The host {host!r} has an address that is not public.")
        problem: OSError | None = None
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_left(deadline))
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem or OSError("no address")

    def _may_connect(self, address: str) -> bool:
        return is_public(address) or (self.allow_private and is_private_network(address))


def _left(deadline: float) -> float:
    """Seconds until the deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextlib.contextmanager
def _limited(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Close the connection at the deadline, also if the other server sends one byte at a time."""
    # A duplicate, because wrapping a socket in TLS detaches it.
    handle = sock.dup()

    def stop() -> None:
        with contextlib.suppress(OSError):
            handle.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_left(deadline), stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        handle.close()


def _reason(error: Exception) -> str:
    """Kind of an error, without addresses of the network."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {getattr(error, 'reason', None) or 'failed'}"
    return getattr(error, "strerror", None) or type(error).__name__


__all__ = ["FetchError", "UrlFetcher"]
