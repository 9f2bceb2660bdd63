"""Choose the weight of the zero-shot score and the thresholds from photos of defects, with cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.collator import resolve_mask_options
from ..models.vip2clip.mask_loading_vip2clip import mask_labels
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import with_references
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..models.vip2clip.reference_left_out_vip2clip import left_out_evidence
from ..models.vip2clip.reference_rule_vip2clip import image_evidence, to_score, zero_shot_weight
from .photos import Photo
from .pixel_choice import PixelChoice
from .reading import ReadPhotos, read_photo
from .scoring import rebuilt, view_evidence


# Weights to choose from, relative to that of the rule.
FACTORS = (1.0, 0.0, 0.5, 2.0)
# Fewer photos of defects choose the threshold only.
LEAST_TO_WEIGH = 5
FOLDS = 5


@dataclass
class DefectReport:
    """
    What photos of defects show.

    Args:
        num_photos (`int`): number of photos of defects.
        weight (`float`): chosen weight of the zero-shot logit.
        rule_weight (`float`): weight of the rule, without photos of defects.
        miss_cost (`float`, *optional*): cost of a missed defect relative to a false alarm. `None` for the largest F1.
        detection (`float`, *optional*): fraction of the defects found, by cross-validation. `None` for one photo.
        false_alarms (`float`, *optional*): fraction of the references above the threshold, by cross-validation.
        f1 (`float`, *optional*): F1, by cross-validation. `None` for one photo.
        scores (`dict[str, float]`): score of each photo of a defect, with the chosen weight.
        unreadable (`dict[str, str]`): photos and masks that cannot be read, and the reason.
        identical (`dict[str, str]`): photos that are left out, and the reference or photo with the same pixels.
        num_masks (`int`): number of photos whose masks chose the pixel threshold.
        pixel_threshold (`float`, *optional*): threshold with the largest F1 of pixels. `None` without masks.
        pixel_f1 (`float`, *optional*): F1 of pixels, by cross-validation. `None` for fewer than two masks.
    """

    num_photos: int
    weight: float
    rule_weight: float
    miss_cost: float | None
    detection: float | None
    false_alarms: float | None
    f1: float | None
    scores: dict[str, float]
    unreadable: dict[str, str]
    identical: dict[str, str] = field(default_factory=dict)
    num_masks: int = 0
    pixel_threshold: float | None = None
    pixel_f1: float | None = None


Views = tuple[torch.Tensor, torch.Tensor]  # distances and zero-shot logits of the views of a photo


def choose_with_defects(
    detector: AnomalyDetectionPipeline,
    bank: ReferenceBank,
    defects: Sequence[Photo],
    *,
    masks: Mapping[str, Any] | None = None,
    miss_cost: float | None = None,
    seed: int = 0,
) -> tuple[ReferenceBank, float, DefectReport]:
    """
    Choose weight and image threshold with photos of defects, and measure them by cross-validation. With masks, choose
    the pixel threshold as well.

    The photos of good parts are the references, each compared with the others only. In each of up to five folds,
    weight and threshold are chosen on the other folds, so no photo is measured with values chosen on it.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        bank ([`ReferenceBank`]): the references, at least two.
        defects (`Sequence[Photo]`): photos of defects.
        masks (`Mapping[str, Any]`, *optional*): mask by name of the photo.
        miss_cost (`float`, *optional*): cost of a missed defect relative to a false alarm. By default, maximize F1.
        seed (`int`, defaults to 0): seed of the folds.

    Returns:
        `tuple[ReferenceBank, float, DefectReport]`: references with the chosen weight, image threshold, and report.

    Raises:
        ValueError: if there is one reference, no photo of a defect can be read, or the cost is not positive.
    """
    if miss_cost is not None and not (np.isfinite(miss_cost) and miss_cost > 0):
        raise ValueError(f"miss_cost is {miss_cost!r}; expected a positive number.")
    if len(bank) < 2:
        raise ValueError("There is 1 reference, and defects are set; expected at least 2 photos of good parts.")
    loader, read, pixels = with_references(detector, None), ReadPhotos(), PixelChoice()
    compared, first = with_references(detector, bank), {photo.sha256: photo.name for photo in bank.photos}
    found: dict[str, Views] = {}
    for photo in defects:
        image = read_photo(loader, photo, read, first)
        if image is None:
            continue
        found[photo.name] = view_evidence(loader, bank, image)
        if masks and photo.name in masks:
            _add_map(pixels, compared, photo, image, masks[photo.name], read.unreadable)
    if not found:
        reason = next(iter(read.unreadable.values()), "all of them are among the photos of good parts")
        raise ValueError(f"None of the {len(defects)} photos of defects can be used: {reason}")
    pixel_threshold, pixel_f1 = None, None
    if pixels.num_masks:
        for one in bank.left_out():
            pixels.add(one.anomaly_map)
        pixel_threshold, pixel_f1 = pixels.choose()
    good = list(left_out_evidence(bank))
    rule = zero_shot_weight(len(bank), bank.view_logits.numpy())
    weights = [factor * rule for factor in FACTORS] if len(found) >= LEAST_TO_WEIGH else [rule]
    labels = np.array([0] * len(good) + [1] * len(found))
    evidence = np.array(
        [[_largest(views, weight) for views in (*good, *found.values())] for weight in weights]
    )  # (num_weights, num_photos)
    detected = _cross_validate(evidence, labels, miss_cost, seed)
    chosen, level = _choose(evidence, labels, miss_cost)
    best = rebuilt(bank, weight=None if weights[chosen] == rule else weights[chosen])
    scores = to_score(torch.from_numpy(evidence[chosen]), best.image_level).numpy()
    threshold = float(to_score(torch.tensor(level, dtype=torch.float64), best.image_level))
    detection, false_alarms, f1 = (None, None, None) if detected is None else _measure(detected, labels)
    named = dict(zip(found, map(float, scores[len(good) :])))
    report = DefectReport(
        len(found), weights[chosen], rule, miss_cost, detection, false_alarms, f1, named, read.unreadable,
        read.identical, pixels.num_masks, pixel_threshold, pixel_f1,
    )  # fmt: skip
    return best, threshold, report


def _add_map(
    pixels: PixelChoice,
    detector: AnomalyDetectionPipeline,
    photo: Photo,
    image: Image.Image,
    mask: Any,
    unreadable: dict[str, str],
) -> None:
    """Add the map of a photo of a defect, if its mask can be read and marks a pixel."""
    anomaly_map, options = detector.decision_map(image)["anomaly_map"], resolve_mask_options(detector.image_processor)
    try:
        marked = mask_labels(
            mask, options, photo.source, (image.height, image.width), size=anomaly_map.shape
        ).labels.astype(bool)
    except (OSError, ValueError) as error:
        unreadable[f"mask of {photo.name}"] = str(error)
    else:
        if marked.any():
            pixels.add(anomaly_map, marked)


def _largest(views: Views, weight: float) -> float:
    return float(image_evidence(*views, weight).double().max())


def _choose(evidence: np.ndarray, labels: np.ndarray, miss_cost: float | None) -> tuple[int, float]:
    """Return the number of the best weight, the first of equal ones, and the threshold halfway between two values."""
    best = (-np.inf, 0, 0.0)
    for number, values in enumerate(evidence):
        ordered = np.unique(values)
        # Around all values, so that each threshold between calls another set of photos anomalous.
        edges = np.concatenate([[ordered[0] - 1], ordered, [ordered[-1] + 1]])
        for threshold in (edges[1:] + edges[:-1]) / 2:
            quality = _quality(values > threshold, labels, miss_cost)
            if quality > best[0]:
                best = (quality, number, float(threshold))
    return best[1], best[2]


def _quality(detected: np.ndarray, labels: np.ndarray, miss_cost: float | None) -> float:
    hits = int((detected & (labels == 1)).sum())
    alarms, misses = int(detected.sum()) - hits, int(labels.sum()) - hits
    return -(alarms + miss_cost * misses) if miss_cost is not None else 2 * hits / (2 * hits + alarms + misses)


def _cross_validate(evidence: np.ndarray, labels: np.ndarray, miss_cost: float | None, seed: int) -> np.ndarray | None:
    """Return which photos are called anomalous with weight and threshold chosen on others."""
    folds = min(FOLDS, int(labels.sum()), int((1 - labels).sum()))
    if folds < 2:
        return None
    rng, fold = np.random.default_rng(seed), np.empty(len(labels), dtype=int)
    for label in (0, 1):
        places = rng.permutation(np.flatnonzero(labels == label))
        fold[places] = np.arange(len(places)) % folds
    detected = np.zeros(len(labels), dtype=bool)
    for number in range(folds):
        held_out = fold == number
        weight, threshold = _choose(evidence[:, ~held_out], labels[~held_out], miss_cost)
        detected[held_out] = evidence[weight, held_out] > threshold
    return detected


def _measure(detected: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Detection rate, false-alarm rate and F1."""
    return (
        float(detected[labels == 1].mean()), float(detected[labels == 0].mean()), _quality(detected, labels, None)
    )  # fmt: skip


__all__ = ["DefectReport", "choose_with_defects"]
