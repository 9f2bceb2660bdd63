"""The server with an exported model: results of `OnnxDetector`, without torch."""

import asyncio
import json
import os
import subprocess
import sys
from io import BytesIO

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.exports import build, export_by_hand
from helpers.servers import as_png, random_photo
from helpers.tiny import ROOT, TINY
from serving.test_predict import EVERYTHING, files, same_result
from vip2clip_hf import ReferenceBank, ViP2ClipImageProcessor, bundled_checkpoint
from vip2clip_hf.cli import app as command
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


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_export_with_references(start, photos, tmp_path, engine):
    """A real graph, with and without its references."""
    pytest.importorskip("onnxscript", reason="extra `export` is not installed")
    pytest.importorskip(engine, reason=f"extra `{engine}` is not installed")
    from vip2clip_hf.export.exporting import export_onnx

    model, image_processor = build(), ViP2ClipImageProcessor(size=TINY["image_size"])
    images = [Image.open(BytesIO(photo)).convert("RGB") for photo in photos]
    bank = ReferenceBank.from_images(model, image_processor, images[:3])
    export_onnx(model, image_processor, tmp_path / "export", references=bank)
    found = {}
    for options in ({}, {"references": None}):
        detector = OnnxDetector(tmp_path / "export", engine=engine, threads=1, **options)
        expected = [detector({"bytes": photo}, regions=True, heatmap=True) for photo in photos]
        client = start(detector, max_batch=5, max_wait=60_000)
        results = client.post("/predict", files=files(photos), params=EVERYTHING).json()["results"]
        for record, result in zip(results, expected, strict=True):
            same_result(record, result, 1e-5, detector.decision.pixel_threshold)
        found[client.get("/info").json()["references"]] = [record["score"] for record in results]
    assert sorted(found) == [0, 3]
    assert found[0] != found[3]


def test_mistakes_are_found_before_the_address_is_printed(folder, tmp_path):
    for arguments, message in (
        (["--model", str(tmp_path / "absent")], "is not an export"),
        (["--model", str(bundled_checkpoint())], "is a checkpoint; expected a folder with export.json"),
    ):
        done = CliRunner().invoke(command, ["serve", "--runtime", "onnx", *arguments, "--port", "0"])
        assert done.exit_code == 1
        assert message in str(done.exception)
        assert "Serving on" not in done.output


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
