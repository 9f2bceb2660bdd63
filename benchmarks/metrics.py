"""Pixel metrics of one category, compared with scikit-learn and a loop over regions."""

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
    """
    Generate synthetic anomaly maps, upsampled from a grid of patches, and masks. About 40 % are anomalous.

    Args:
        count (`int`): number of maps.
        side (`int`): side of a map in pixels.
        batch_size (`int`, defaults to 8): number of maps per batch.

    Yields:
        `tuple[np.ndarray, np.ndarray]`: maps in [0, 1], and masks (bool), both of shape `(batch_size, side, side)`.
    """
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
    """
    Compute pixel metrics in the usual way: scikit-learn on all pixels, and for AUPRO a loop over thresholds, masks and
    regions.
    """
    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / (precision + recall + 1e-8)
    low, high = maps.min(), maps.max()
    overlaps_by_threshold, rates_by_threshold = [], []
    for threshold in np.arange(low, high, (high - low) / steps):
        predicted = maps > threshold
        overlaps = []
        for prediction, mask in zip(predicted, masks):
            regions, number = ndimage.label(mask, structure=np.ones((3, 3)))
            for region, place in enumerate(ndimage.find_objects(regions, number), start=1):
                inside = regions[place] == region
                overlaps.append(prediction[place][inside].mean())
        overlaps_by_threshold.append(np.mean(overlaps))
        rates_by_threshold.append(predicted[~masks].mean())
    pros, fprs = np.array(overlaps_by_threshold), np.array(rates_by_threshold)
    kept = fprs < fpr_limit
    fprs, pros = fprs[kept], pros[kept]
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1": f1.max(),
        "pixel_aupro": auc((fprs - fprs.min()) / (fprs.max() - fprs.min()), pros),
    }


def streamed_metrics(batches: Iterator[tuple[np.ndarray, np.ndarray]], convention: str = "exact") -> dict[str, float]:
    """Compute pixel metrics with `AnomalyMetrics`, batch by batch."""
    metrics = AnomalyMetrics(aupro_convention=convention)
    for maps, masks in batches:
        labels = masks.reshape(len(masks), -1).any(axis=1)
        metrics.update(np.zeros(len(maps)), labels, maps, masks)
    return metrics.compute()["categories"]["all"]


def peak_memory(count: int, side: int) -> float:
    """Return the peak memory in MB that the metrics of `count` maps add to generating the maps batch by batch."""

    def peak(consume: Callable[[Iterator[tuple[np.ndarray, np.ndarray]]], object]) -> int:
        tracemalloc.start()
        consume(generate_maps(count, side))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    return (peak(streamed_metrics) - peak(lambda batches: [None for _ in batches])) / 2**20


def benchmark_metrics(options: argparse.Namespace) -> None:
    """Measure all pixel metrics of one category, compared with scikit-learn and a loop over regions."""
    batches = list(generate_maps(options.maps, options.side))
    maps, masks = (np.concatenate(parts) for parts in zip(*batches))
    print(f"{options.maps} maps of {options.side} x {options.side}, {masks.any(axis=(1, 2)).mean():.0%} anomalous")
    ours = median_time(lambda: streamed_metrics(iter(batches)), options.repeats)
    start = time.perf_counter()
    expected = textbook_metrics(maps, masks)
    theirs = time.perf_counter() - start
    exact, release = streamed_metrics(iter(batches)), streamed_metrics(iter(batches), "release")
    per_map, ratio = 1000 / options.maps, f"{theirs / ours:.0f} times as long"
    print(f"  AnomalyMetrics               {per_map * ours:8.2f} ms per map (median of {options.repeats} repeats)")
    print(f"  scikit-learn and region loop {per_map * theirs:8.2f} ms per map   {ratio}")
    for name, value in expected.items():
        result = (release if name == "pixel_aupro" else exact)[name]
        print(f"  {name:12s} {value:.6f}, difference of AnomalyMetrics {abs(result - value):.1e}")
    print(f"  AUPRO: {exact['pixel_aupro']:.6f} cut exactly at the limit, {release['pixel_aupro']:.6f} by the sweep")
    for count in (options.maps, 10 * options.maps):
        print(f"  peak memory added by the metrics of {count} maps: {peak_memory(count, options.side):.0f} MB")
