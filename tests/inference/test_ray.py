"""Bulk prediction on a local Ray cluster of two workers: the same table, also when processes are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.files import files_in
from helpers.predictions import table_bytes
from helpers.stores import moto_s3, photos_for_stores, upload
from helpers.tiny import ROOT, TINY, change_weights, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.inference import prediction, ray_engine
from vip2clip_hf.inference.folder import PredictionFolder
from vip2clip_hf.inference.images import FolderImages
from vip2clip_hf.inference.prediction import predict_to_folder


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
ray = pytest.importorskip("ray", reason="the extra ray is not installed")
psutil = pytest.importorskip("psutil")
OPTIONS = {"batch_size": 2, "chunk_size": 3}


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with moto_s3(tmp_path_factory.mktemp("aws")) as fs:
        yield fs


@pytest.fixture(scope="module")
def cluster(s3):
    """Workers get the environment of this process, with the address of the store."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - the name of Ray; otherwise, workers starve next to other tests
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    change_weights(model)
    return model, ViP2ClipImageProcessor(size=TINY["image_size"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return photos_for_stores(tmp_path_factory.mktemp("ray") / "photos")


def many(folder: Path, count: int = 48) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def actors() -> list:
    """Processes of actors of this session only."""
    return [one for one in psutil.Process().children(recursive=True) if "ChunkPredictor" in one.name() + title(one)]


def title(process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_same_files_as_the_other_engine(cluster, detector, photos, tmp_path):
    predict_to_folder(*detector, photos, tmp_path / "a", heatmaps=True, maps=True, **OPTIONS)
    found = predict_to_folder(
        *detector,
        photos,
        tmp_path / "b",
        heatmaps=True,
        maps=True,
        engine="ray",
        num_actors=2,
        num_workers=2,
        **OPTIONS,
    )
    assert (found["num_images"], found["num_unreadable"], found["num_done_before"]) == (12, 2, 0)
    assert table_bytes(tmp_path / "a") == table_bytes(tmp_path / "b")
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    for name in files_in(tmp_path / "a"):
        if name.startswith(("heatmaps/", "maps/")):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    # Either engine continues what the other has started.
    (photos / "later.png").write_bytes((photos / "a.png").read_bytes())
    try:
        for engine, name in (("accelerate", "b"), ("ray", "a")):
            again = predict_to_folder(
                *detector, photos, tmp_path / name, heatmaps=True, maps=True, engine=engine, **OPTIONS
            )
            assert (again["num_images"], again["num_done_before"]) == (13, 12)
    finally:
        (photos / "later.png").unlink()
    assert table_bytes(tmp_path / "a") == table_bytes(tmp_path / "b")


def test_bucket_to_bucket(cluster, s3, detector, photos, tmp_path):
    upload(s3, photos, "photos-for-ray/set")
    for engine in ("accelerate", "ray"):
        predict_to_folder(*detector, "s3://photos-for-ray/set", f"s3://results/{engine}", engine=engine, **OPTIONS)
    assert s3.cat_file("results/ray/predictions.parquet") == s3.cat_file("results/accelerate/predictions.parquet")
    assert not s3.exists("results/ray/.progress")


def test_a_source_that_workers_do_not_see(cluster, detector, photos, tmp_path):
    import fsspec

    upload(fsspec.filesystem("memory"), photos, "/invisible")
    with pytest.raises(OSError, match="not visible to a Ray worker"):
        predict_to_folder(*detector, "memory://invisible", tmp_path / "out", engine="ray", **OPTIONS)


def test_error_of_an_actor(cluster, detector, photos, tmp_path):
    model = ViP2ClipForAnomalyDetection(detector[0].config).eval()
    model.load_state_dict(detector[0].state_dict())
    with torch.no_grad():
        model.clip.vision_model.embeddings.class_embedding.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"Images in this batch: \["):
        predict_to_folder(model, detector[1], photos, tmp_path / "out", engine="ray", num_actors=1, **OPTIONS)


def test_killed_worker_loses_nothing(cluster, detector, tmp_path, monkeypatch):
    photos = many(tmp_path / "photos")
    predict_to_folder(*detector, photos, tmp_path / "whole", **OPTIONS)
    write, killed, written = PredictionFolder.write_part, [], []

    def kill_once(self, chunk, rows, states):
        write(self, chunk, rows, states)
        written.append(chunk)
        if len(written) == 3:
            victim = actors()[0]
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFolder, "write_part", kill_once)
        predict_to_folder(*detector, photos, tmp_path / "out", engine="ray", num_actors=2, **OPTIONS)
    assert len(killed) == 1
    assert not psutil.pid_exists(killed[0])
    assert sorted(written) == list(range(16))
    assert table_bytes(tmp_path / "out") == table_bytes(tmp_path / "whole")


class Poison(FolderImages):
    """Images of which one kills the process that reads it."""

    def read(self, position, name, location=()):
        if name == b"004.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(position, name, location)


def test_an_image_that_kills_its_worker(cluster, detector, tmp_path, monkeypatch):
    """The run ends and names the chunk; the finished chunks are kept."""
    photos = many(tmp_path / "photos", 12)
    monkeypatch.setattr(ray_engine, "MOST_ATTEMPTS", 2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    monkeypatch.setattr(prediction, "as_images", lambda source, output, recursive: Poison(photos, tmp_path / "out"))
    with pytest.raises(OSError, match=r"died 2 times while it predicted the images from '003.png' to '005.png'"):
        predict_to_folder(*detector, photos, tmp_path / "out", engine="ray", num_actors=1, **OPTIONS)
    monkeypatch.undo()
    found = predict_to_folder(*detector, photos, tmp_path / "out", **OPTIONS)
    assert found["num_images"] == 12


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.inference.prediction import predict_to_folder
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
model = ViP2ClipForAnomalyDetection.from_pretrained({model!r}).eval()
processor = ViP2ClipImageProcessor.from_pretrained({model!r})
predict_to_folder(model, processor, {photos!r}, {output!r}, engine="ray", num_actors=2, batch_size=2, chunk_size=3)
"""


def test_killed_driver_resumes(cluster, detector, tmp_path):
    photos = many(tmp_path / "photos", 150)
    for part in detector:
        part.save_pretrained(tmp_path / "model")
    predict_to_folder(*detector, photos, tmp_path / "whole", **OPTIONS)
    script = SCRIPT.format(
        paths=[str(ROOT / "src")], model=str(tmp_path / "model"), photos=str(photos), output=str(tmp_path / "out")
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    progress = tmp_path / "out" / ".progress"
    try:
        deadline = time.monotonic() + 400
        while len(list(progress.glob("part-*.parquet"))) < 3:
            assert process.poll() is None, "ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    parts = len(list(progress.glob("part-*.parquet")))
    assert 3 <= parts < 50
    found = predict_to_folder(*detector, photos, tmp_path / "out", engine="ray", num_actors=2, **OPTIONS)
    assert found["num_done_before"] == 3 * parts
    assert table_bytes(tmp_path / "out") == table_bytes(tmp_path / "whole")
