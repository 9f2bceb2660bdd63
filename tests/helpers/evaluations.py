"""A model and datasets to evaluate, and comparison of results."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from helpers.tiny import TINY, change_weights
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.metrics import METRICS


def model_with_wide_maps(clip: CLIPModel) -> ViP2ClipForAnomalyDetection:
    """Build a model whose maps range from 0 to 1. Maps of the tiny model have a range of 0.01: rounding, which differs
    between processes, then changes the order of pixels."""
    with torch.no_grad():
        clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    change_weights(model)
    with torch.no_grad():
        for parameter in (*model.prompt_learner.parameters(), *model.fine_grained_perception.parameters()):
            parameter.mul_(20)
    return model


def write_sources(folder: Path) -> list[DataSource]:
    """Write datasets of 14 and 7 images. They have the layout of MVTec AD but other categories, so they are not read
    as a benchmark."""
    parts = write_dataset(folder / "parts", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)
    other = write_dataset(folder / "more" / "other", ("waves",), num_normal=3, num_anomalous=1, size=48, seed=3)
    return [DataSource.parse(str(parts)), DataSource.parse(f"named={other}")]


def read_results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["results"]


def assert_same_results(first: dict, second: dict, tolerance: float = 0.0):
    assert list(first["categories"]) == list(second["categories"])
    pairs = [(first["mean"], second["mean"]), *zip(first["categories"].values(), second["categories"].values())]
    for one, two in pairs:
        for metric in METRICS:
            assert one[metric] == pytest.approx(two[metric], abs=tolerance, nan_ok=True), metric


def assert_same_files(first: Path, second: Path):
    """Compare scores and maps of the same images, with a tolerance for rounding, which differs between processes."""
    rows = [list(csv.reader((folder / "scores.csv").read_text().splitlines())) for folder in (first, second)]
    assert [row[:-1] for row in rows[0]] == [row[:-1] for row in rows[1]]
    scores = [np.array([float(row[-1]) for row in part[1:]]) for part in rows]
    np.testing.assert_allclose(*scores, atol=5e-6)
    for path in (first / "maps").iterdir():
        if path.suffix == ".npy":
            np.testing.assert_allclose(np.load(path), np.load(second / "maps" / path.name), atol=1e-3)
        else:
            assert path.read_text() == (second / "maps" / path.name).read_text()
