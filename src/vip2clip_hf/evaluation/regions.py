"""Metrics of an evaluation, with the regions of masks that vanish at the size of the model."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import AnomalyMetrics


# Numbers of a category, in the order of the state.
REGION_COUNTS = ("num_original_regions", "num_small_regions", "num_lost_regions", "num_empty_masks")
_STATE = "regions"


class EvaluationMetrics(AnomalyMetrics):
    """
    [`AnomalyMetrics`] that also count the regions of masks before masks are resized.

    Args:
        fpr_limit, aupro_convention: see [`AnomalyMetrics`].
    """

    def __init__(self, fpr_limit: float = 0.3, aupro_convention: str = "exact") -> None:
        super().__init__(fpr_limit, aupro_convention)
        self._regions: dict[str, np.ndarray] = {}

    def add_regions(
        self, categories: Sequence[str], labels: Sequence[int], regions: Sequence[tuple[int, int, int] | None]
    ) -> None:
        """
        Add the regions of a batch.

        Args:
            categories (`Sequence[str]`): category of every image.
            labels (`Sequence[int]`): label of every image.
            regions (`Sequence[tuple[int, int, int]]`): number of regions, of regions without a pixel after resizing,
                and of those that are lost, or `None` for images without a mask.
        """
        for category, label, found in zip(categories, labels, regions):
            total = self._regions.setdefault(category, np.zeros(len(REGION_COUNTS)))
            if found is not None:
                total += (*found, label == 1 and found[0] == 0)

    def reset(self) -> None:
        """Remove all images."""
        super().reset()
        self._regions = {}

    def merge(self, other: AnomalyMetrics) -> None:
        """Add the images of other metrics, see [`AnomalyMetrics`]."""
        super().merge(other)
        for category, counts in getattr(other, "_regions", {}).items():
            self._regions[category] = self._regions.get(category, np.zeros(len(REGION_COUNTS))) + counts

    def state_dict(self) -> dict[str, np.ndarray]:
        """Save all images added so far, see [`AnomalyMetrics`]."""
        content = json.dumps({name: counts.tolist() for name, counts in self._regions.items()})
        return {**super().state_dict(), _STATE: np.frombuffer(content.encode(), dtype=np.uint8)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all images by those of a saved state, see [`AnomalyMetrics`]."""
        super().load_state_dict(state)
        if _STATE in state:
            saved = json.loads(bytes(np.asarray(state[_STATE], dtype=np.uint8)).decode())
            self._regions = {name: np.asarray(counts) for name, counts in saved.items()}
        else:  # of an earlier version: not known
            self._regions = {name: np.full(len(REGION_COUNTS), math.nan) for name in self._categories}

    def compute(self) -> dict[str, Any]:
        """
        Compute the metrics of all images added so far.

        Returns:
            `dict`: the result of [`AnomalyMetrics.compute`]. Categories also contain `num_original_regions` (regions
            at the size of the images), `num_small_regions` (those without a pixel when masks are resized),
            `num_lost_regions` (small regions that are not kept, see [`MaskOptions`]) and `num_empty_masks` (masks of
            anomalous images without a marked pixel); NaN if they are not known.
        """
        result = super().compute()
        for name, found in result["categories"].items():
            counts = self._regions.get(name, np.zeros(len(REGION_COUNTS))).tolist()
            found.update({key: math.nan if math.isnan(v) else int(v) for key, v in zip(REGION_COUNTS, counts)})
        return result


__all__ = ["REGION_COUNTS", "EvaluationMetrics"]
