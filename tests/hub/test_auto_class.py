"""Folders saved with `save_pretrained` after `register_for_auto_class`, loaded where the package is not installed."""

import json
import os
import subprocess
import sys

import pytest
import torch

from helpers.tiny import TINY, change_weights
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipConfig, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor


LOAD = """
import json, sys
sys.modules["vip2clip_hf"] = None  # importing it fails
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

folder, again = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
named = pipeline("anomaly-detection", model=folder, trust_remote_code=True, device="cpu")
inferred = pipeline(model=folder, trust_remote_code=True, device="cpu")
# Saved again by a user who does not have the package.
model.save_pretrained(again)
processor.save_pretrained(again)
saved_again = pipeline("anomaly-detection", model=again, trust_remote_code=True, device="cpu")
print(json.dumps({
    "modules": [type(part).__module__.split(".")[0] for part in (config, model, processor, named, inferred)],
    "size": processor.size["height"],
    "scores": [detector("photo.png")["score"] for detector in (named, inferred, saved_again)],
}))
"""


@pytest.fixture
def registered(monkeypatch):
    """As in the documentation of transformers, undone after the test."""
    for cls, auto_class in (
        (ViP2ClipConfig, "AutoConfig"),
        (ViP2ClipForAnomalyDetection, "AutoModel"),
        (ViP2ClipImageProcessor, "AutoImageProcessor"),
    ):
        monkeypatch.setattr(cls, "_auto_class", cls._auto_class)
        cls.register_for_auto_class(auto_class)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parts", "pipeline"])
def test_plain_save_pretrained(kind, registered, clip, image_processor, photo, tmp_path):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    change_weights(model.fine_grained_perception)
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    if kind == "pipeline":
        detector.save_pretrained(tmp_path / "saved")
    else:
        model.save_pretrained(tmp_path / "saved")
        image_processor.save_pretrained(tmp_path / "saved")
    # Only in the file: in memory, it would make `pipeline(model=model)` ask for trust_remote_code.
    assert not hasattr(model.config, "custom_pipelines")
    photo.save(tmp_path / "photo.png")
    with torch.no_grad():
        expected = model(**image_processor(photo, return_tensors="pt")).scores.item()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "saved", "again"],
        cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modules"] == ["transformers_modules"] * 5
    assert found["size"] == 48
    assert found["scores"] == pytest.approx([expected] * 3, abs=1e-6)
    # Where the package is installed, its classes are used, without trust_remote_code.
    loaded = AnomalyDetectionPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded(photo)["score"] == pytest.approx(expected, abs=1e-6)


def test_without_registration(model, tmp_path):
    for _ in range(2):
        model.save_pretrained(tmp_path)
    files = {"config.json", "decision.json", "provenance.json", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert not {"auto_map", "custom_pipelines"} & set(json.loads((tmp_path / "config.json").read_text()))
