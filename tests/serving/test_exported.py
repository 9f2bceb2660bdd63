"""The server with an exported model: results of `OnnxDetector`, without torch."""

import asyncio
import json
import os
import subprocess
import sys

import httpx
import pytest

from helpers.exports import export_by_hand
from helpers.servers import as_png, random_photo
from helpers.tiny import ROOT
from serving.test_predict import EVERYTHING, files, same_result
from vip2clip_hf.runtime import OnnxDetector
from vip2clip_hf.serving import ServerSettings, create_server_app


pytestmark = pytest.mark.xdist_group("serving")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_by_hand(tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("options", [{}, {"tile_size": 40, "threshold": 0.55}])
@pytest.mark.parametrize("max_batch", [1, 5])
def test_same_as_the_detector(start, folder, photos, options, max_batch):
    detector = OnnxDetector(folder, threads=1, **options)
    expected = [detector({"bytes": photo}, regions=True, heatmap=True) for photo in photos]
    client = start(detector, max_batch=max_batch, max_wait=60_000 if max_batch > 1 else 0)
    response = client.post("/predict", files=files([*photos, b"no photo"]), params=EVERYTHING)
    *results, bad = response.json()["results"]
    assert bad["status"] == 422
    pixel = options.get("threshold", detector.decision.pixel_threshold)
    for record, result in zip(results, expected, strict=True):
        same_result(record, result, 1e-6 if max_batch > 1 else 0, pixel)
    described = client.get("/info").json()
    assert described["image_threshold"] == options.get("threshold", 0.6)
    assert (described["calibrated"], described["tile_size"]) == (not options, options.get("tile_size", 0))
    assert described["references"] == 0


def test_many_requests(folder):
    """Requests share batches, and each gets its own result."""
    detector = OnnxDetector(folder, threads=1)
    photos = [as_png(random_photo(seed, (40, 30))) for seed in range(40)]
    expected = [detector({"bytes": photo})["score"] for photo in photos]
    app = create_server_app(detector, ServerSettings(queue=64))

    async def run():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
                return await asyncio.gather(*(client.post("/predict", files=files([photo])) for photo in photos))

    answers = asyncio.run(run())
    assert [one.status_code for one in answers] == [200] * len(photos)
    found = [one.json()["results"][0]["score"] for one in answers]
    assert found == pytest.approx(expected, abs=1e-6)


PROGRAM = """
import sys
for name in ("torch", "transformers", "huggingface_hub", "safetensors", "scipy", "tqdm", "datasets"):
    sys.modules[name] = None
from fastapi.testclient import TestClient
from vip2clip_hf.cli.entry import app as command
from vip2clip_hf.serving import running

def run(application):
    with TestClient(application, base_url="http://127.0.0.1") as client:
        while client.get("/ready").status_code == 503:
            pass
        print(client.post("/predict", files={"images": open(sys.argv.pop(), "rb")}).text)

class Server:
    started = should_exit = True
    def __init__(self, config):
        self.config = config
    def run(self, sockets):
        run(self.config.app)

running.uvicorn.Server = Server
photo = sys.argv.pop()
sys.argv.append(photo)
command(["serve", "--runtime", "onnx", "--model", sys.argv[1], "--port", "0", "--no-access-log"])
"""


def test_the_command_without_torch(folder, photos, tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(photos[0])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(photo)], capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout.splitlines()[1])["results"]
    assert record["score"] == OnnxDetector(folder)(photo)["score"]
    assert "The model is loaded in onnxruntime." in done.stderr
