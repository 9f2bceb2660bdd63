"""Pixel metrics of one category, against scikit-learn and a loop over regions."""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.models.vip2clip.maps_vip2clip import resize_maps

from .common import median_time


def generate_maps(count: int, side: int, batch_size: int = 8) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of maps as a model makes them, from a grid of patches, and of masks; some 40 % are anomalous."""
    rng = np.random.default_rng(0)
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        masks = np.zeros((size, side, side), dtype=bool)
        for mask in masks:
            for _ in range(rng.integers(1, 4) if rng.random() < 0.4 else 0):
                y, x = rng.integers(0, side - side // 8, size=2)
                height, width = rng.integers(side // 40, side // 8, size=2)
                mask[y : y + height, x : x + width] = True
        grid = side // 14
        marked = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks).float(), grid)
        logits = torch.from_numpy(rng.standard_normal((size, grid, grid)).astype(np.float32)) + 3 * marked - 1.5
        yield resize_maps(logits.sigmoid(), side, sigma=8.0).numpy(), masks


def textbook_metrics(
    maps: np.ndarray, masks: np.ndarray, steps: int = 200, fpr_limit: float = 0.3
) -> dict[str, float]:
    """Pixel metrics as the codes of this field compute them: scikit-learn on all pixels, and for AUPRO a loop over
    thresholds, masks and regions."""
    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / (precision + recall + 1e-8)
    low, high = maps.min(), maps.max()
    pros, fprs = [], []
    for threshold in np.arange(low, high, (high - low) / steps):
        found = maps > threshold
        overlaps = []
        for one, mask in zip(found, masks):
            regions, number = ndimage.label(mask, structure=np.ones((3, 3)))
            for region, place in enumerate(ndimage.find_objects(regions, number), start=1):
                inside = regions[place] == region
                overlaps.append(one[place][inside].mean())
        pros.append(np.mean(overlaps))
        fprs.append(found[~masks].mean())
    pros, fprs = np.array(pros), np.array(fprs)
    kept = fprs < fpr_limit
    fprs, pros = fprs[kept], pros[kept]
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1": f1.max(),
        "pixel_aupro": auc((fprs - fprs.min()) / (fprs.max() - fprs.min()), pros),
    }


def streamed_metrics(batches: Iterator[tuple[np.ndarray, np.ndarray]], convention: str = "exact") -> dict[str, float]:
    metrics = AnomalyMetrics(aupro_convention=convention)
    for maps, masks in batches:
        labels = masks.reshape(len(masks), -1).any(axis=1)
        metrics.update(np.zeros(len(maps)), labels, maps, masks)
    return metrics.compute()["categories"]["all"]


def peak_memory(count: int, side: int) -> float:
    """Peak memory in MB that metrics of `count` maps add to that of making the maps one batch at a time."""

    def peak(consume: Callable[[Iterator], object]) -> int:
        tracemalloc.start()
        consume(generate_maps(count, side))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    return (peak(streamed_metrics) - peak(lambda batches: [None for _ in batches])) / 2**20


def benchmark_metrics(options: argparse.Namespace):
    """All pixel metrics of one category, against scikit-learn and a region loop."""
    batches = list(generate_maps(options.maps, options.side))
    maps, masks = (np.concatenate(parts) for parts in zip(*batches))
    print(f"{options.maps} maps of {options.side} x {options.side}, {masks.any(axis=(1, 2)).mean():.0%} anomalous")
    ours = median_time(lambda: streamed_metrics(iter(batches)), options.repeats)
    start = time.perf_counter()
    expected = textbook_metrics(maps, masks)
    theirs = time.perf_counter() - start
    exact, release = streamed_metrics(iter(batches)), streamed_metrics(iter(batches), "release")
    print(f"  AnomalyMetrics               {1000 * ours / options.maps:8.2f} ms a map (median of {options.repeats})")
    print(f"  scikit-learn and region loop {1000 * theirs / options.maps:8.2f} ms a map   {theirs / ours:.0f} times")
    for name, value in expected.items():
        found = (release if name == "pixel_aupro" else exact)[name]
        print(f"  {name:12s} {value:.6f}, AnomalyMetrics {abs(found - value):.1e} apart")
    print(f"  AUPRO cut at the limit exactly {exact['pixel_aupro']:.6f}, the sweep {release['pixel_aupro']:.6f}")
    for count in (options.maps, 10 * options.maps):
        print(f"  peak memory added by {count} maps: {peak_memory(count, options.side):.0f} MB")
