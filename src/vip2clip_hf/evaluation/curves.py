"""Metrics of one ranking: AUROC, AP, F1-max and AUPRO.

`counts` always has shape `(3, cells)`: negatives, positives and weights of every cell, from the highest value to the
lowest. A cell is a group of values that are treated as equal.
"""

import math

import numpy as np

from ..utils.extras import extra
from .histogram_counts import NEGATIVE, POSITIVE, WEIGHT


def auroc(counts: np.ndarray) -> float:
    """
    Compute the area under the ROC curve: the share of correctly ordered pairs, where ties count half.

    Args:
        counts (`np.ndarray` of shape `(3, cells)`): see the module; at least one negative and one positive.

    Returns:
        `float`: the area, in [0, 1].
    """
    negatives, positives = counts[NEGATIVE], counts[POSITIVE]
    higher = np.cumsum(positives) - positives / 2
    return float((negatives * higher).sum() / (negatives.sum() * positives.sum()))


def average_precision(counts: np.ndarray) -> float:
    """
    Compute the average precision: the sum of precision times gain in recall, not interpolated (as in scikit-learn).

    Args:
        counts (`np.ndarray` of shape `(3, cells)`): see the module; at least one positive.

    Returns:
        `float`: the average precision, in [0, 1].
    """
    true, found = np.cumsum(counts[POSITIVE]), np.cumsum(counts[NEGATIVE] + counts[POSITIVE])
    precision = np.divide(true, found, where=found > 0, out=np.zeros_like(true))
    return float((counts[POSITIVE] * precision).sum() / true[-1])


def f1_max(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """
    Compute the largest F1 over all thresholds.

    Args:
        values (`np.ndarray` of shape `(cells,)`): value of every cell, descending.
        counts (`np.ndarray` of shape `(3, cells)`): see the module; at least one positive.

    Returns:
        `tuple[float, float]`: the F1, in [0, 1], and its threshold. Values greater than the threshold are positive, as
        in the decisions of the pipeline: it is the number just below the lowest positive value.
    """
    true, found = np.cumsum(counts[POSITIVE]), np.cumsum(counts[NEGATIVE] + counts[POSITIVE])
    f1 = 2 * true / (found + true[-1])
    # Of several best thresholds the lowest, as the released code chooses it from scikit-learn's curve.
    best = len(f1) - 1 - int(f1[::-1].argmax())
    return float(f1[best]), _just_below(float(values[best]), float(values[best + 1 : best + 2].max(initial=-math.inf)))


def _just_below(value: float, lower: float) -> float:
    """Largest number below `value` in float32, in which decisions are made. In float64 if there are values in between,
    of which `lower` is the largest."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
        if float(single) >= value:  # as Python numbers, because numpy would round `value` to float32
            single = np.nextafter(single, np.float32(-np.inf))
    found = float(single)
    return found if math.isfinite(found) and found >= lower else float(np.nextafter(value, -np.inf))


def aupro(counts: np.ndarray, fpr_limit: float = 0.3) -> float:
    """
    Compute the area under the per-region overlap curve: mean overlap with the defect regions over false positive rate.

    The curve is linear between thresholds and ends exactly at the limit. The area is divided by the limit.

    Args:
        counts (`np.ndarray` of shape `(3, cells)`): see the module; at least one negative and one positive.
        fpr_limit (`float`, defaults to 0.3): false positive rate up to which the area is computed, in (0, 1].

    Returns:
        `float`: the AUPRO, in [0, 1].
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
    """Area under a piecewise linear curve."""
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def release_aupro(
    values: np.ndarray, counts: np.ndarray, minimum: float, maximum: float, fpr_limit: float = 0.3, steps: int = 200
) -> float:
    """
    Compute AUPRO as the authors' released code does.

    The curve has one point for each of `steps` thresholds between the smallest and the largest value. Only points with
    a false positive rate below the limit are kept. Their rates are rescaled to [0, 1], and nothing is interpolated at
    either end.

    Args:
        values (`np.ndarray` of shape `(cells,)`): value of every cell, descending.
        counts (`np.ndarray` of shape `(3, cells)`): see the module; at least one negative and one positive.
        minimum, maximum (`float`): smallest and largest value.
        fpr_limit (`float`, defaults to 0.3): false positive rate up to which the area is computed, in (0, 1].
        steps (`int`, defaults to 200): number of thresholds.

    Returns:
        `float`: the AUPRO, in [0, 1], or NaN with fewer than two different false positive rates below the limit.
    """
    low, high = np.float32(minimum), np.float32(maximum)
    if low == high:
        return math.nan
    thresholds = np.arange(low, high, (high - low) / steps)
    # Cells are in descending order, so those above a threshold come first.
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
    Compute the weight of each defect pixel: 1 / area of its 8-connected region.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool): mask with at least one defect pixel.

    Returns:
        `tuple[np.ndarray, int]`: weights in the order of `mask[mask]`, float64, and the number of regions.

    Raises:
        ImportError: if scipy is not installed.
    """
    with extra("data", "AUPRO"):
        from scipy import ndimage

    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    regions, number = ndimage.label(box, structure=np.ones((3, 3), dtype=bool))
    region_of_pixel = regions[box]
    return (1.0 / np.maximum(np.bincount(region_of_pixel), 1))[region_of_pixel], number


__all__ = ["aupro", "auroc", "average_precision", "f1_max", "region_weights", "release_aupro"]
