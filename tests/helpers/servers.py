"""Servers for tests: `vip2clip serve` as a process, and a small server of files with faults."""

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.tiny import ROOT


def as_png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def random_photo(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(5, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def nothing_is_kept(service):
    """Every place in the queue, byte and pixel was given back."""
    assert (service.queue.used, service.uploads.used, service._decoded._budget.used) == (0, 0, 0)


def multipart(files: list[tuple[str, bytes]], field: str = "images") -> tuple[bytes, str]:
    """Write files as a multipart body. Returns the body and its content type."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        parts += [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", content, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


class ServerProcess:
    """`vip2clip serve` in a process of its own, on a free port unless the arguments choose one."""

    def __init__(self, arguments: list[str], folder: Path, cwd: Path | None = None, **variables: str):
        self.out, self.err = folder / f"{uuid.uuid4().hex}.out", folder / f"{uuid.uuid4().hex}.err"
        port = [] if any(argument.startswith("--port") for argument in arguments) else ["--port", "0"]
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **variables}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vip2clip_hf", "serve", *arguments, *port],
                cwd=cwd, env=environment, stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def errors(self) -> str:
        return self.err.read_text(encoding="utf-8", errors="replace")

    @property
    def log(self) -> list[dict]:
        """Lines of the log of requests."""
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines() if line.startswith("{")]

    def wait_for(self, found: Callable[[], object], seconds: float = 300):
        deadline = time.monotonic() + seconds
        while True:
            value = found()
            if value:
                return value
            assert self.process.poll() is None, f"the server has ended\n{self.errors}"
            assert time.monotonic() < deadline, f"nothing happened\n{self.errors}"
            time.sleep(0.05)

    def address(self) -> tuple[str, int]:
        """Wait until the address is bound."""
        found = self.wait_for(lambda: re.search(r"https?://([\d.]+):(\d+)", self.out.read_text(encoding="utf-8")))
        return found[1], int(found[2])

    def ready(self) -> tuple[str, int]:
        """Wait until the model is loaded."""
        address = self.address()

        def check() -> bool:
            with contextlib.suppress(OSError):
                return self.request("GET", "/ready", address=address)[0] == 200
            return False

        self.wait_for(check)
        return address

    def request(self, method: str, path: str, body=None, headers=None, address=None) -> tuple[int, bytes, dict]:
        """Send a request on a new connection. Returns status, content and headers."""
        connection = http.client.HTTPConnection(*(address or self.address()), timeout=900)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=900)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def serving(arguments: list[str], folder: Path, **options) -> Iterator[ServerProcess]:
    """Run `vip2clip serve` while a block runs."""
    server = ServerProcess(arguments, folder, **options)
    try:
        yield server
    finally:
        server.close()


class FileServer:
    """
    A server of files on this machine.

    Args:
        files (`dict[str, bytes | str | Callable]`): by path, the content, where a redirect leads to, or a function of
            the request handler that answers.
    """

    def __init__(self, files: dict):
        self.asked: list[str] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.asked.append(self.path)
                found = files.get(self.path)
                if callable(found):
                    return found(self)
                self.send_response(404 if found is None else 302 if isinstance(found, str) else 200)
                content = found if isinstance(found, bytes) else b""
                self.send_header("Content-Length", str(len(content)))
                if isinstance(found, str):
                    self.send_header("Location", found)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.files = files
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
