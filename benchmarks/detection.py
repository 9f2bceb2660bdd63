"""Estimated detection rates, from synthetic defects, compared with the rates on real defects."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from vip2clip_hf import AnomalyDetectionPipeline, adapt, bundled_checkpoint
from vip2clip_hf.calibration.pasting import DEFECTS, paste_defect
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold
from vip2clip_hf.models.vip2clip.pipeline_steps_vip2clip import with_references


SIZES = (0.05, 0.08, 0.12, 0.16, 0.2)
DRAWS = 1000


def photos_of(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """
    List the photos of a category in the layout of MVTec AD.

    Args:
        folder (`pathlib.Path`): folder with `train` and `test`.

    Returns:
        `tuple[list[str], list[str], list[str]]`: good photos to calibrate with, other good photos, and defects.
    """
    good = sorted(map(str, (folder / "train" / "good").iterdir()))
    other = sorted(map(str, (folder / "test" / "good").iterdir()))
    bad = sorted(str(path) for path in (folder / "test").glob("*/*") if path.parent.name != "good")
    return good, other, bad


def scores_of(detector: AnomalyDetectionPipeline, paths: list[str]) -> np.ndarray:
    """Score photos."""
    return np.array([detector.decision_map(path)["score"] for path in tqdm(paths, disable=None)])


def zero_shot(detector: AnomalyDetectionPipeline, folder: Path, count: int, rate: float) -> dict[str, Any]:
    """Score all photos once, then draw the photos of the calibration many times."""
    good, other, bad = photos_of(folder)
    good_scores, other_scores, bad_scores = (scores_of(detector, paths) for paths in (good, other, bad))
    changed = np.empty((len(good), len(DEFECTS), len(SIZES)))
    for number, path in enumerate(tqdm(good[:40], desc="synthetic", disable=None)):
        image = detector.load(path)
        for kind, defect in enumerate(DEFECTS):
            for place, size in enumerate(SIZES):
                rng = np.random.default_rng([number, kind, place])
                pasted = paste_defect(rng, image, defect, size)[0]
                changed[number, kind, place] = detector.decision_map(pasted)["score"]
    rng, rows = np.random.default_rng(0), []
    for _ in range(DRAWS):
        chosen = rng.choice(len(good), count, replace=False)
        threshold = conformal_threshold(good_scores[chosen].tolist(), rate)
        found = changed[chosen[chosen < 40]] > threshold
        rows.append(((bad_scores > threshold).mean(), (other_scores > threshold).mean(), found[..., :2].mean(),
                     found[..., 2:].mean()))  # fmt: skip
    return summary(rows)


def with_good_photos(
    detector: AnomalyDetectionPipeline, folder: Path, count: int, rate: float, seeds: list[int]
) -> dict[str, Any]:
    """Adapt with some draws of good photos."""
    good, other, bad = photos_of(folder)
    rows = []
    for seed in seeds:
        chosen = np.random.default_rng(seed).permutation(len(good))[:count]
        found = adapt(detector, [good[place] for place in chosen], false_alarm_rate=rate, seed=seed)
        compared, threshold = with_references(detector, found.bank), found.image_threshold
        sizes = found.detection.sizes if found.detection else []
        rows.append(
            (
                (scores_of(compared, bad) > threshold).mean(),
                (scores_of(compared, other) > threshold).mean(),
                *(size["num_found"] / size["num_photos"] for size in sizes),
            )
        )
    return summary(rows)


def summary(rows: list[tuple[float, ...]]) -> dict[str, Any]:
    """Mean and standard deviation over the draws, in percent."""
    values = 100 * np.array(rows)
    names = ("found", "false alarms", "estimate, 4 to 12 %", "estimate, 12 to 20 %")
    return {name: f"{one.mean():.0f} ± {one.std():.0f}" for name, one in zip(names, values.T)}


def benchmark_detection(options: argparse.Namespace) -> None:
    """Print a table."""
    torch.set_num_threads(options.threads)
    detector = AnomalyDetectionPipeline.from_pretrained(options.model or bundled_checkpoint(), device="cpu")
    table = []
    for root in map(Path, options.data):
        for folder in sorted(path.parents[1] for path in root.glob("**/train/good")):
            found = zero_shot(detector, folder, options.photos, options.rate)
            table.append({"dataset": root.name, "command": "calibrate", **found})
            if options.seeds:
                found = with_good_photos(detector, folder, options.photos, options.rate, options.seeds)
                table.append({"dataset": root.name, "command": "adapt", **found})
    print(tabulate(table, headers="keys", tablefmt="github"))
