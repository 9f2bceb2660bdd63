"""Metrics of one category."""

import math
from typing import Any

import numpy as np

from .curves import aupro, auroc, average_precision, f1_max, release_aupro
from .histogram import PixelHistogram
from .histogram_counts import NEGATIVE, POSITIVE


IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1")
METRICS = (*IMAGE_METRICS, *PIXEL_METRICS)
# AUPRO by convention. `pixel_aupro` is the one that was asked for.
AUPROS = {"exact": "pixel_aupro_exact", "release": "pixel_aupro_release"}
THRESHOLDS = ("image_f1_threshold", "pixel_f1_threshold")
# Of an evaluation with references.
RATES = ("reference_threshold", "detection_rate", "false_alarm_rate")


def compute_category(
    scores: np.ndarray,
    labels: np.ndarray,
    histogram: PixelHistogram,
    num_maps: int,
    num_regions: int,
    fpr_limit: float,
    aupro_convention: str,
) -> dict[str, Any]:
    """
    Compute the metrics of one category.

    Args:
        scores, labels (`np.ndarray` of shape `(num_images,)`): scores, float64, and labels, int64, of all images.
        histogram ([`PixelHistogram`]): pixels of all maps.
        num_maps, num_regions (`int`): number of maps and of defect regions.
        fpr_limit (`float`): false positive rate up to which AUPRO is computed, in (0, 1].
        aupro_convention (`"exact"` or `"release"`): convention of `pixel_aupro`.

    Returns:
        `dict`: see [`AnomalyMetrics.compute`].
    """
    names = (*METRICS, *AUPROS.values(), *THRESHOLDS)
    result: dict[str, Any] = dict.fromkeys(names, math.nan)
    undefined: dict[str, str] = {}
    result.update(num_images=len(labels), num_anomalous_images=int(labels.sum()))
    values, inverse = np.unique(-scores, return_inverse=True)
    counts = np.zeros((3, len(values)))
    counts[NEGATIVE] = np.bincount(inverse, weights=1 - labels, minlength=len(values))
    counts[POSITIVE] = np.bincount(inverse, weights=labels, minlength=len(values))
    _add_curves(result, undefined, "image", -values, counts)

    values, counts = histogram.cells()
    totals = histogram.totals
    result.update(
        num_maps=num_maps,
        num_pixels=int(totals[NEGATIVE] + totals[POSITIVE]),
        num_anomalous_pixels=int(totals[POSITIVE]),
        num_regions=num_regions,
    )
    bounds = {}
    if not num_maps:
        undefined.update(dict.fromkeys((*PIXEL_METRICS, *AUPROS.values()), "no image has a mask"))
    else:
        _add_curves(result, undefined, "pixel", values, counts)
        if "pixel_auroc" in undefined:
            undefined.update(dict.fromkeys(("pixel_aupro", *AUPROS.values()), undefined["pixel_auroc"]))
        else:
            result["pixel_aupro_exact"] = aupro(counts, fpr_limit)
            result["pixel_aupro_release"] = release_aupro(
                values, counts, histogram.minimum, histogram.maximum, fpr_limit
            )
            result["pixel_aupro"] = result[AUPROS[aupro_convention]]
            for name in ("pixel_aupro", "pixel_aupro_release"):
                if math.isnan(result[name]):
                    undefined[name] = "fewer than two different false positive rates below the limit"
        found = histogram.bounds()
        bounds = {f"pixel_{name}": bound for name, bound in found.items() if f"pixel_{name}" not in undefined}
    return {**result, "undefined": undefined, "error_bounds": bounds}


def _add_curves(
    result: dict[str, Any], undefined: dict[str, str], level: str, values: np.ndarray, counts: np.ndarray
) -> None:
    """Add AUROC, AP and F1 of a level, `"image"` or `"pixel"`, to `result`. With one class, any score has an AP and an
    F1 of 1, so they are undefined as well."""
    for row, kind in ((POSITIVE, "anomalous"), (NEGATIVE, "normal")):
        if not counts[row].sum():
            names = (f"{level}_auroc", f"{level}_ap", f"{level}_f1")
            undefined.update(dict.fromkeys(names, f"no {kind} {level}s"))
            return
    result[f"{level}_auroc"] = auroc(counts)
    result[f"{level}_ap"] = average_precision(counts)
    result[f"{level}_f1"], result[f"{level}_f1_threshold"] = f1_max(values, counts)


__all__ = ["AUPROS", "METRICS", "PIXEL_METRICS", "RATES", "THRESHOLDS", "compute_category"]
