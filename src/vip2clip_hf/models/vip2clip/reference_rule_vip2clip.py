"""Combine zero-shot scores and maps with distances to references.

With s the mean of the largest percent of the distance map, and p the zero-shot score, the evidence of an image is

    S = ln s + w logit p

The weight w depends on the references only: it is large for few references, and small if the zero-shot scores of the
references hardly differ. The evidence of a pixel is the same with its distance and its zero-shot map, and the constant
weight `MAP_WEIGHT`. The score is the evidence relative to that of the references, mapped to [0, 1]:

    score = sigmoid((S - level) / SCALE)

This does not change the order of images. 0.5 is the level: median + 3 standard deviations (estimated from the median
deviation, at least `LEAST_DEVIATION`) of the evidence of the references, each compared with the others.

The sum of logarithms keeps a useless zero-shot score from dominating. Standardizing both parts by the references does
not: it amplifies the zero-shot score where it means nothing.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


# Fraction of the pixels of a distance map that an image score is the mean of.
TOP_FRACTION = 0.01
# Smallest distance, to take logarithms of.
LEAST_DISTANCE = 1e-6
# Smallest distance of a zero-shot map from 0 and 1.
LEAST_PROBABILITY = 1e-4
MAP_WEIGHT = 0.3
# Expected standard deviation of the zero-shot logits of normal images of a product, with the weight of two images.
PRIOR_DEVIATION = 0.3
SCALE = 0.25
LEAST_DEVIATION = 0.1


def top_mean(maps: torch.Tensor) -> torch.Tensor:
    """
    Average the largest percent of each map.

    Args:
        maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): maps.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`: the means.
    """
    flat = maps.flatten(1)
    return flat.topk(max(1, math.ceil(TOP_FRACTION * flat.shape[1])), dim=1).values.mean(dim=1)


def zero_shot_weight(num_photos: int, logits: Sequence[float] | np.ndarray) -> float:
    """
    Compute the weight of the zero-shot logit in the evidence of an image.

    The weight decreases with the number of references from 0.4 to 0.15. It is reduced if the zero-shot logits of the
    references have a standard deviation below 0.3, estimated together with that value as prior.

    Args:
        num_photos (`int`): number of references.
        logits (`Sequence[float]`): zero-shot logits of references, at least one.

    Returns:
        `float`: the weight, in [0, 0.4].
    """
    prior, count = PRIOR_DEVIATION**2, len(logits)
    variance = float(np.var(np.asarray(logits, dtype=np.float64), ddof=1)) if count > 1 else 0.0
    deviation = math.sqrt((2 * prior + (count - 1) * variance) / (count + 1))
    return min(0.4, max(0.15, 0.6 / math.sqrt(num_photos))) * min(1.0, deviation / PRIOR_DEVIATION)


def image_evidence(reference_scores: torch.Tensor, logits: torch.Tensor, weight: float) -> torch.Tensor:
    """
    Combine distances and zero-shot logits of images.

    Args:
        reference_scores (`torch.FloatTensor` of shape `(batch_size,)`): from [`top_mean`], in [0, 2].
        logits (`torch.FloatTensor` of shape `(batch_size,)`): logit of the zero-shot score.
        weight (`float`): from [`zero_shot_weight`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`: the evidence.
    """
    return reference_scores.clamp_min(LEAST_DISTANCE).log() + weight * logits


def map_evidence(reference_maps: torch.Tensor, anomaly_maps: torch.Tensor) -> torch.Tensor:
    """
    Combine distance maps and zero-shot maps.

    Args:
        reference_maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): distances, in [0, 2].
        anomaly_maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): zero-shot maps, in [0, 1].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, height, width)`: the evidence of each pixel.
    """
    logits = anomaly_maps.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY).logit()
    return reference_maps.clamp_min(LEAST_DISTANCE).log() + MAP_WEIGHT * logits


def evidence_level(values: Sequence[float] | np.ndarray) -> float:
    """
    Compute the evidence that becomes a score of 0.5.

    Args:
        values (`Sequence[float]`): evidence of references, each compared with the others. At least one.

    Returns:
        `float`: median + 3 robust standard deviations.
    """
    found = np.asarray(values, dtype=np.float64)
    median = float(np.median(found))
    return median + 3 * max(LEAST_DEVIATION, 1.4826 * float(np.median(np.abs(found - median))))


def to_score(evidence: torch.Tensor, level: float) -> torch.Tensor:
    """
    Map evidence to [0, 1], keeping its order.

    Args:
        evidence (`torch.FloatTensor` of any shape): evidence of images or pixels.
        level (`float`): evidence that becomes 0.5.

    Returns:
        `torch.FloatTensor` of the same shape: scores.
    """
    return torch.sigmoid((evidence - level) / SCALE)


__all__ = ["evidence_level", "image_evidence", "map_evidence", "to_score", "top_mean", "zero_shot_weight"]
