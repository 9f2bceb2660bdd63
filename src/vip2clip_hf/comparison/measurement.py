"""What a method of a comparison computed, and how photos are evaluated."""

from dataclasses import dataclass, field

import numpy as np

from ..evaluation.regions import EvaluationMetrics
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .competitors import Competitor


@dataclass
class Measurement:
    """
    What a method computed, and what it took.

    Args:
        competitor ([`Competitor`]): the method.
        scores (`np.ndarray` of shape `(num_images,)`): scores, NaN for photos that could not be read.
        maps (`dict[int, np.ndarray]`): anomaly maps of the photos of the sheet, by position.
        metrics ([`EvaluationMetrics`], *optional*): metrics. `None` without labels.
        shared_with (`list[str]`): names of the methods for which the vision tower ran at the same time.
        num_timed (`int`): number of photos that were timed.
        tower_seconds (`float`): time of the shared vision tower. 0 if the method ran on its own.
        own_seconds (`float`): time of the rest; of all if the method ran on its own.
        peak_memory (`int`): largest memory in bytes, with that of the shared vision tower.
        map_maximum (`float`): what a map is divided by to draw methods on one scale.
    """

    competitor: Competitor
    scores: np.ndarray
    maps: dict[int, np.ndarray] = field(default_factory=dict)
    metrics: EvaluationMetrics | None = None
    shared_with: list[str] = field(default_factory=list)
    num_timed: int = 0
    tower_seconds: float = 0.0
    own_seconds: float = 0.0
    peak_memory: int = 0
    map_maximum: float = 1.0


@dataclass
class RunOptions:
    """
    How photos are evaluated.

    Args:
        batch_size (`int`): photos per batch.
        num_workers (`int`): processes that decode photos.
        mask_options ([`MaskOptions`]): how to read masks, all set.
        fpr_limit, aupro_convention: see [`AnomalyMetrics`].
        skip_unreadable (`bool`): whether to leave out photos that cannot be read.
        progress (`bool`): whether to show a progress bar.
    """

    batch_size: int
    num_workers: int
    mask_options: MaskOptions
    fpr_limit: float
    aupro_convention: str
    skip_unreadable: bool
    progress: bool


__all__ = ["Measurement", "RunOptions"]
