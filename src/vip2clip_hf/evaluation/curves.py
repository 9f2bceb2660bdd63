"""The metrics of one ranking: AUROC, AP, F1-max and AUPRO.

`counts` are those of cells from the highest value down, of shape `(3, cells)`: negatives, positives, weights.
"""

import math

import numpy as np

from ..utils.extras import extra
from .histogram_counts import NEGATIVE, POSITIVE, WEIGHT


# Curves. `counts` are those of cells from the highest value down, (3, cells): negatives, positives, weights.


def auroc(counts: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs in the right order, ties by half."""
    negatives, positives = counts[NEGATIVE], counts[POSITIVE]
    higher = np.cumsum(positives) - positives / 2
    return float((negatives * higher).sum() / (negatives.sum() * positives.sum()))


def average_precision(counts: np.ndarray) -> float:
    """Sum of precision times gain in recall, not interpolated (scikit-learn's definition)."""
    true, found = np.cumsum(counts[POSITIVE]), np.cumsum(counts[NEGATIVE] + counts[POSITIVE])
    there = found > 0
    return float((counts[POSITIVE] * np.divide(true, found, where=there, out=np.zeros_like(true))).sum() / true[-1])


def f1_max(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The largest F1 of all thresholds, and the value from which on (greater or equal) things are positive there."""
    true, found = np.cumsum(counts[POSITIVE]), np.cumsum(counts[NEGATIVE] + counts[POSITIVE])
    f1 = 2 * true / (found + true[-1])
    # Of several thresholds the lowest, as the precision-recall curve of scikit-learn is read by the released code.
    best = len(f1) - 1 - int(f1[::-1].argmax())
    return float(f1[best]), float(values[best])


def aupro(counts: np.ndarray, fpr_limit: float = 0.3) -> float:
    """
    Area under the curve of the mean overlap of the defect regions over the false positive rate, up to `fpr_limit` and
    divided by it. The curve is linear between values, and is cut at the limit exactly.
    """
    fpr = np.concatenate([[0], np.cumsum(counts[NEGATIVE])]) / counts[NEGATIVE].sum()
    pro = np.concatenate([[0], np.cumsum(counts[WEIGHT])]) / counts[WEIGHT].sum()
    end = int(np.searchsorted(fpr, fpr_limit, side="right"))
    if end < len(fpr):  # the segment that crosses the limit
        share = (fpr_limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
        pro = np.concatenate([pro[:end], [pro[end - 1] + share * (pro[end] - pro[end - 1])]])
        fpr = np.concatenate([fpr[:end], [fpr_limit]])
    return _area(fpr, pro) / fpr_limit


def _area(x: np.ndarray, y: np.ndarray) -> float:
    """Area under a curve of straight lines."""
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def release_aupro(
    values: np.ndarray, counts: np.ndarray, minimum: float, maximum: float, fpr_limit: float = 0.3, steps: int = 200
) -> float:
    """
    AUPRO as the released code has it: `steps` thresholds between the smallest and the largest value, of the points
    with a false positive rate below the limit those rates stretched to [0, 1], no interpolation at either end.
    """
    minimum, maximum = np.float32(minimum), np.float32(maximum)
    if minimum == maximum:
        return math.nan
    thresholds = np.arange(minimum, maximum, (maximum - minimum) / steps)
    # Cells come from the highest down; those above a threshold are the first ones.
    above = np.searchsorted(-values.astype(np.float64), -thresholds.astype(np.float64), side="left")
    fpr = np.concatenate([[0], np.cumsum(counts[NEGATIVE])])[above] / counts[NEGATIVE].sum()
    pro = np.concatenate([[0], np.cumsum(counts[WEIGHT])])[above] / counts[WEIGHT].sum()
    fpr, pro = fpr[fpr < fpr_limit], pro[fpr < fpr_limit]
    if len(fpr) < 2 or fpr.max() == fpr.min():
        return math.nan
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return abs(_area(fpr, pro))


def region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """
    The weight of every defect pixel: 1 over the area of its 8-connected region.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool): with at least one defect pixel.

    Returns:
        `tuple`: weights in the order of `mask[mask]`, float64, and the number of regions.
    """
    with extra("data", "AUPRO"):
        from scipy import ndimage

    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    regions, number = ndimage.label(box, structure=np.ones((3, 3), dtype=bool))
    of_pixels = regions[box]
    return (1.0 / np.maximum(np.bincount(of_pixels), 1))[of_pixels], number


__all__ = ["aupro", "auroc", "average_precision", "f1_max", "region_weights", "release_aupro"]
