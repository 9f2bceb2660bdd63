"""Photos from URLs: allowed hosts and public addresses only, with limits."""

import socket
import threading
import time

import pytest

from helpers.servers import FileServer
from vip2clip_hf.serving import urls
from vip2clip_hf.serving.urls import FetchError, UrlFetcher


pytest.importorskip("fastapi", reason="the server needs fastapi (pip install 'vip2clip_hf[serve]')")
pytestmark = pytest.mark.xdist_group("serving")


def drip(handler):
    """One byte at a time, for ever."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(200):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


def drip_headers(handler):
    try:
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


def endless(handler):
    """Without Content-Length."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(10_000))
    except OSError:
        pass


def compressed(handler):
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"x")


def no_http(handler):
    handler.wfile.write(b"hello\r\n\r\n")


@pytest.fixture(scope="module")
def server():
    found = FileServer(
        {
            "/a.png": b"content", "/large": bytes(5000), "/moved": "/a.png", "/loop": "/loop", "/drip": drip,
            "/headers": drip_headers, "/endless": endless, "/compressed": compressed, "/cut": cut, "/no": no_http,
            "/elsewhere": "http://localhost:1/a.png", "/metadata": "http://169.254.169.254/", "/ftp": "ftp://x/y",
        }
    )  # fmt: skip
    yield found
    found.close()


@pytest.fixture
def fetcher(server) -> UrlFetcher:
    hosts = {f"127.0.0.1:{server.port}", f"localhost:{server.port}", "localhost:1", "169.254.169.254"}
    return UrlFetcher(hosts, 2000, 60, allow_private=True)


def test_fetch(fetcher, server):
    address = f"http://127.0.0.1:{server.port}"
    assert fetcher.fetch(f"{address}/a.png") == b"content"
    assert fetcher.fetch(f"http://LOCALHOST:{server.port}/moved") == b"content"
    for path, status, reason in (
        ("/absent", 422, "status 404"),
        ("/large", 413, "larger than 2,000 bytes"),
        ("/endless", 413, "larger than 2,000 bytes"),
        ("/loop", 502, "more than 3 redirects"),
        ("/elsewhere", 403, "redirects to another one"),
        ("/metadata", 403, "redirects to another one"),
        ("/ftp", 422, "expected http"),
        ("/compressed", 502, "compressed"),
        ("/cut", 502, "too early"),
        ("/no", 502, "did not answer as expected"),
    ):
        with pytest.raises(FetchError, match=reason) as error:
            fetcher.fetch(address + path)
        assert error.value.status == status, path
    fetcher.timeout = 0.5  # for the whole photo, also if a byte arrives now and then
    for path in ("/drip", "/headers"):
        with pytest.raises(FetchError, match=r"within 0\.5 s") as error:
            fetcher.fetch(address + path)
        assert error.value.status == 504
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer)]


def test_addresses_are_checked(server, monkeypatch):
    """After the name is resolved: a public name can have an address of this machine."""
    hosts = {f"127.0.0.1:{server.port}", f"localhost:{server.port}", "photos.example"}
    before = len(server.asked)
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(FetchError, match="address that is not public") as error:
            UrlFetcher(hosts, 2000, 5).fetch(f"http://{host}:{server.port}/a.png")
        assert error.value.status == 403
    # One address of several is enough, and link-local addresses are refused in any case.
    resolve = socket.getaddrinfo
    for addresses in (["8.8.8.8", "10.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, found=found, **kwargs: found)
        with pytest.raises(FetchError, match="not public"):
            UrlFetcher(hosts, 2000, 5).fetch("http://photos.example/a.png")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: resolve("169.254.169.254", 80))
    with pytest.raises(FetchError, match="not public"):
        UrlFetcher(hosts, 2000, 5, allow_private=True).fetch("http://photos.example/a.png")
    assert len(server.asked) == before


def test_the_connection_goes_to_the_checked_address(server, monkeypatch):
    """A name that has another address the next time is not resolved again."""
    asked = []

    def resolve(host, port, **kwargs):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    fetcher = UrlFetcher({f"photos.example:{server.port}"}, 2000, 5, allow_private=True)
    assert fetcher.fetch(f"http://photos.example:{server.port}/a.png") == b"content"
    assert asked == ["photos.example"]


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_proxies_are_not_used(fetcher, server, monkeypatch, proxy):
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    assert fetcher.fetch(f"http://127.0.0.1:{server.port}/a.png") == b"content"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://good.example/a.png", None),
        ("http://good.example:80/a.png", None),
        ("https://GOOD.example/a.png?x=1#y", None),
        ("https://other.example:8443/a", None),
        ("https://good.example:8443/a", 403),
        ("https://other.example/a", 403),
        ("https://sub.good.example/a", 403),
        ("https://good.example.evil.example/a", 403),
        ("https://evil.example/good.example", 403),
        ("https://good.example@evil.example/", 422),
        ("https://evil.example\\@good.example/", 422),
        ("https://user:pass@good.example/", 422),
        ("http://2130706433/", 403),
        ("file:///etc/passwd", 422),
        ("data:image/png;base64,AAAA", 422),
        ("/etc/passwd", 422),
        ("https://good.example/a b", 422),
        ("https://good.example/a\r\nHost: x", 422),
        ("https://gööd.example/", 422),
        ("https://good.example:99999/", 422),
        ("https://[::1/", 422),
        ("https://", 422),
    ],
)
def test_check(url, status):
    fetcher = UrlFetcher({"good.example", "other.example:8443"}, 1000, 1)
    if status is None:
        fetcher.check(url)
        return
    with pytest.raises(FetchError) as error:
        fetcher.check(url)
    assert error.value.status == status


def test_in_the_server(start, detector, photos, server, monkeypatch):
    server.files.update({"/one.png": photos[0], "/two.png": photos[1]})
    host = f"127.0.0.1:{server.port}"
    client = start(allow_urls=(host,), allow_private_urls=True, max_file_size=0.004)
    good = [f"http://{host}/one.png", f"http://{host}/two.png"]
    bad = ["https://evil.example/a.png", f"http://{host}/absent", "photo.jpg", f"http://{host}/large"]
    response = client.post("/predict", json=[good[0], *bad, good[1]])
    assert response.status_code == 200
    results = response.json()["results"]
    assert [one["name"] for one in results] == [good[0], *bad, good[1]]
    assert [one.get("status") for one in results] == [None, 403, 422, 422, 413, None]
    for record, photo in ((results[0], photos[0]), (results[-1], photos[1])):
        assert record["score"] == pytest.approx(detector({"bytes": photo})["score"], abs=1e-6)
    assert client.post("/predict", json={"urls": [good[0]]}).status_code == 200
    assert client.post("/predict", json=[bad[0]]).status_code == 403
    for wrong, status in (({"url": good[0]}, 422), ([1], 422), ("x", 422), ([], 422), ([good[0]] * 17, 413)):
        assert client.post("/predict", json=wrong).status_code == status
    for text in (b"[", b"[" * 100_000):
        assert client.post("/predict", content=text, headers={"Content-Type": "application/json"}).status_code == 400
    assert "evil.example" not in "".join(server.asked)
    refused = start(allow_urls=(host,)).post("/predict", json=[good[0]])  # an address of this machine
    assert (refused.status_code, refused.json()["results"][0]["status"]) == (403, 403)


def test_tls_checks_the_name(monkeypatch):
    """The certificate is that of the host in the URL, not of its address."""
    names = []

    class Context:
        def wrap_socket(self, sock, server_hostname):
            names.append(server_hostname)
            sock.close()
            raise urls.ssl.SSLCertVerificationError("no certificate")

    monkeypatch.setattr(urls.ssl, "create_default_context", Context)
    with FileServerPort() as port, pytest.raises(FetchError, match="TLS") as error:
        UrlFetcher({f"localhost:{port}"}, 10, 5, allow_private=True).fetch(f"https://localhost:{port}/")
    assert error.value.status == 502
    assert names == ["localhost"]


class FileServerPort:
    """A port that accepts connections."""

    def __enter__(self) -> int:
        self.socket = socket.create_server(("127.0.0.1", 0))
        return self.socket.getsockname()[1]

    def __exit__(self, *error):
        self.socket.close()
