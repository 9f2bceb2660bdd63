"""Throughput of `vip2clip serve` with and without batching, compared with the pipeline in this process."""

import argparse
import contextlib
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vip2clip_hf import AnomalyDetectionPipeline, bundled_checkpoint


def photos(count: int, side: int) -> list[bytes]:
    """Write photos with a smooth pattern as JPEG, as a camera does."""
    found = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(60, 200, size=(12, 12, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(content, format="JPEG", quality=90)
        found.append(content.getvalue())
    return found


class Server:
    """`vip2clip serve` in another process, ready."""

    def __init__(self, arguments: list[str], threads: int | None) -> None:
        variables = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self._output = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - closed by close()
        command = [sys.executable, "-m", "vip2clip_hf", "serve", "--port", "0", "--queue", "4096", "--no-access-log"]
        self.process = subprocess.Popen(
            [*command, *arguments], env={**os.environ, **variables}, stdout=self._output, stderr=subprocess.DEVNULL
        )
        self.host, self.port = self._address()
        while self.get("/ready") != 200:
            time.sleep(0.2)

    def _address(self) -> tuple[str, int]:
        while self.process.poll() is None:
            found = re.search(r"http://([\d.]+):(\d+)", Path(self._output.name).read_text(encoding="utf-8"))
            if found is not None:
                return found[1], int(found[2])
            time.sleep(0.1)
        raise RuntimeError("The server could not be started.")

    def get(self, path: str) -> int:
        """Return the status of a page, or 0."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.suppress(OSError):
            connection.request("GET", path)
            return connection.getresponse().status
        return 0

    def load(self, contents: list[bytes], clients: int) -> tuple[float, list[float]]:
        """Send photos from several clients, each one after the other. Return the seconds, and those of each photo."""
        left, times, lock = list(contents), [], threading.Lock()
        start = threading.Barrier(clients + 1)

        def send() -> None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
            start.wait()
            while True:
                with lock:
                    if not left:
                        return
                    content = left.pop()
                begin = time.perf_counter()
                connection.request("POST", "/predict", content, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                found = json.loads(response.read())
                if response.status != 200:
                    raise RuntimeError(f"The server answered with status {response.status}: {found}")
                with lock:
                    times.append(time.perf_counter() - begin)

        threads = [threading.Thread(target=send) for _ in range(clients)]
        for thread in threads:
            thread.start()
        start.wait()
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        if len(times) != len(contents):
            raise RuntimeError(f"{len(times)} of {len(contents)} photos have a result.")
        return time.perf_counter() - begin, times

    def close(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait()
        self._output.close()


@contextlib.contextmanager
def _servers(options: argparse.Namespace, model: str) -> Iterator[dict[str, Server]]:
    common = ["--model", model, *(["--device", options.device] if options.device else [])]
    found: dict[str, Server] = {}
    try:
        for name, batch in (("off", 1), ("on", options.max_batch)):
            arguments = [*common, "--max-batch", str(batch), "--max-wait", str(options.max_wait)]
            found[name] = Server(arguments, options.threads)
        yield found
    finally:
        for server in found.values():
            server.close()


def benchmark_serve(options: argparse.Namespace) -> None:
    """Measure photos per second of the server with batching off and on, and of the pipeline, interleaved."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = str(bundled_checkpoint()) if options.model is None else options.model
    contents = photos(options.images, options.side)
    detector = AnomalyDetectionPipeline.from_pretrained(model, device=options.device)
    inputs = [{"bytes": content} for content in contents]
    print(
        f"{detector.model.config.image_size} pixels, {detector.device}, {torch.get_num_threads()} threads, "
        f"{options.images} photos of {options.side} x {options.side} pixels, medians of {options.repeats} repeats"
    )
    rates: dict[tuple[str, int], list[float]] = {}
    times: dict[tuple[str, int], list[float]] = {}
    with _servers(options, model) as servers:
        for server in servers.values():  # warm-up
            server.load(contents[: 2 * options.max_batch], options.max_batch)
        for _ in range(options.repeats):
            for batch in (1, options.max_batch):
                begin = time.perf_counter()
                detector(inputs, batch_size=batch, regions=True)
                rates.setdefault(("pipeline", batch), []).append(len(contents) / (time.perf_counter() - begin))
            for clients in options.clients:
                for name, server in servers.items():
                    seconds, single = server.load(contents, clients)
                    rates.setdefault((name, clients), []).append(len(contents) / seconds)
                    times.setdefault((name, clients), []).extend(single)
    for batch in (1, options.max_batch):
        print(f"  pipeline, batch {batch:<3d} {statistics.median(rates['pipeline', batch]):8.2f} photos/s")
    print(
        "  clients   batching off: photos/s  median ms    95 % ms   "
        "batching on: photos/s  median ms    95 % ms   on/off"
    )
    for clients in options.clients:
        cells, middle = [], {}
        for name in servers:
            middle[name] = statistics.median(rates[name, clients])
            half, most = np.percentile(times[name, clients], (50, 95)) * 1000
            cells.append(f"{middle[name]:24.2f} {half:10.0f} {most:10.0f}")
        print(f"  {clients:7d} {'   '.join(cells)} {middle['on'] / middle['off']:10.2f}")


__all__ = ["benchmark_serve"]
