"""Processes of `vip2clip watch` that are killed at random moments while photos arrive: each photo has one row."""

import csv
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.processes import _environment
from helpers.tiny import tiny_config
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, save_checkpoint


pytestmark = pytest.mark.slow
# The command, on a disk that needs long for each byte of a row. So it is often killed in the middle of a row.
SLOW_DISK = """
import os, sys, time
from vip2clip_hf.cli import main
from vip2clip_hf.watching.results import ResultsFile

def append(self, write):
    with open(self.path, "ab", buffering=0) as file:
        if file.tell() > write.offset:
            file.truncate(write.offset)
        for byte in range(0, len(write.content), 4):
            file.write(write.content[byte : byte + 4])
            time.sleep(0.003)

ResultsFile.append = append
main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(ViP2ClipForAnomalyDetection(tiny_config()), ViP2ClipImageProcessor(size=48), folder)
    return folder


def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


class Camera(threading.Thread):
    """Writes photos like different programs do: at once, slowly, under another name first, or over an older photo."""

    def __init__(self, folder: Path, seed: int):
        super().__init__(daemon=True)
        self.folder, self.random, self.stop = folder, random.Random(seed), threading.Event()
        self.orders = threading.Semaphore(0)  # one for each photo to take
        self.ordered = 0
        self.expected: Counter[str] = Counter()

    def take(self, count: int):
        self.ordered += count
        self.orders.release(count)

    def run(self):
        number = 0
        while not self.stop.wait(self.random.uniform(0.01, 0.1)):
            if not self.orders.acquire(timeout=0.05):
                continue
            number += 1
            name, data = f"{number % 7}/{number:05d}.jpg", photo(number)
            (self.folder / name).parent.mkdir(exist_ok=True)
            way = self.random.choice(("at once", "slowly", "renamed"))
            if way == "at once":
                (self.folder / name).write_bytes(data)
            elif way == "slowly":
                with open(self.folder / name, "wb") as file:
                    for start in range(0, len(data), 1000):
                        file.write(data[start : start + 1000])
                        file.flush()
                        time.sleep(0.02)
            else:
                (self.folder / f"{name}.part").write_bytes(data)
                (self.folder / f"{name}.part").rename(self.folder / name)
            self.expected[name] += 1


def start(words: list[str], log: Path) -> subprocess.Popen:
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, *words], env=_environment(), stdout=subprocess.DEVNULL, stderr=file)


def wait_for(condition, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def wait_for_start(process: subprocess.Popen, log: Path):
    wait_for(lambda: b"INFO Watching" in log.read_bytes() or process.poll() is not None)
    assert process.poll() is None, log.read_text()


def rows_of(output: Path) -> list[dict[str, str]]:
    with open(output / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_torn(output: Path, camera: Camera) -> bool:
    """Whether a row is half written. If no photo is waiting, take another one."""
    if len(camera.expected) == camera.ordered:
        camera.take(1)
    return not (output / "results.csv").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("kind", ["slow disk, events", "command, events", "slow disk, poll"])
def test_killed_at_random_moments(kind, checkpoint, tmp_path):
    photos, output, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    photos.mkdir()
    program = ["-c", SLOW_DISK] if "slow" in kind else ["-m", "vip2clip_hf"]
    words = [*program, "watch", str(photos), "--output", str(output), "--model", str(checkpoint), "--device", "cpu"]
    words += ["--settle", "0.5", "--heatmaps", *(["--poll", "0.3"] if "poll" in kind else [])]
    camera, choose = Camera(photos, seed=len(kind)), random.Random(kind)
    camera.start()
    kills, torn = 5, 0
    for run in range(kills):
        log.unlink(missing_ok=True)
        camera.take(3)
        process = start(words, log)
        try:
            wait_for_start(process, log)
            camera.take(12)
            if run == 3:  # in the middle, once cleanly
                time.sleep(1)
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
                assert "Stopped. Photos since the start" in log.read_text()
                continue
            time.sleep(choose.uniform(0.3, 3))
            if "slow" in kind and run % 2 == 0:
                wait_for(lambda: is_torn(output, camera))
        finally:
            process.kill()
            process.wait()
        torn += not (output / "results.csv").read_bytes().endswith(b"\n")
    wait_for(lambda: len(camera.expected) == camera.ordered)
    camera.stop.set()
    camera.join()
    # Replace some photos while no process runs.
    for name in list(camera.expected)[:5]:
        (photos / name).write_bytes(photo(10_000 + camera.expected[name] + len(name)) + name.encode())
        camera.expected[name] += 1
    process = start(words, log)
    try:
        wait_for(lambda: sum(camera.expected.values()) <= len(rows_of(output)) or process.poll() is not None)
        time.sleep(3)  # for rows too many
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    rows = rows_of(output)
    assert (output / "results.csv").read_bytes().count(b"\n") == len(rows) + 1
    found = Counter(row["id"] for row in rows)
    assert set(found) == set(camera.expected)
    # A photo replaced before it was read has one row; no photo has more rows than contents.
    assert all(found[name] <= camera.expected[name] for name in found)
    assert {name for name in found if found[name] != camera.expected[name]} <= set(list(camera.expected)[:5])
    assert all(row["error"] == "" for row in rows)
    detector = AnomalyDetectionPipeline.from_pretrained(checkpoint, device="cpu")
    for row in rows[-20:]:
        assert detector(str(photos / row["id"]))["score"] == pytest.approx(float(row["score"]), abs=1e-6)
    heatmaps = {path.relative_to(output / "heatmaps").as_posix() for path in output.glob("heatmaps/*/*.png")}
    assert heatmaps == {f"{name}.png" for name in found}
    assert not list(output.rglob("*.vip2clip-tmp"))
    assert torn >= 1 or "slow" not in kind, "no process was killed in the middle of a row"


def test_ctrl_c_and_a_second_watcher(checkpoint, tmp_path):
    photos, output, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(photo(1))
    words = ["-m", "vip2clip_hf", "watch", str(photos), "--output", str(output), "--model", str(checkpoint)]
    process = start(words, log)
    try:
        wait_for(lambda: b"INFO Watching" in log.read_bytes())
        other = subprocess.run(
            [sys.executable, *words], env=_environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert other.returncode == 1
        assert "Another program is watching a folder and writing into" in other.stderr
        wait_for(lambda: len(rows_of(output)) == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert log.read_text().endswith("Interrupted. To resume, run the same command again.\n")
        assert "a.jpg: " in log.read_text()
    finally:
        process.kill()
        process.wait()
    assert os.listdir(output / ".progress")
