"""Choose the pixel threshold from maps of good parts and maps of defects with masks."""

import numpy as np

from ..evaluation.curves import f1_max
from ..evaluation.histogram import PixelHistogram
from ..evaluation.histogram_counts import NEGATIVE, POSITIVE, to_keys


FOLDS = 5


class PixelChoice:
    """
    Count the pixels of anomaly maps, and choose the threshold with the largest F1, as in [`AnomalyMetrics`].

    The maps are divided into five folds, to measure the F1 on maps that the threshold was not chosen on. Maps are not
    stored.
    """

    def __init__(self) -> None:
        self._folds = [PixelHistogram() for _ in range(FOLDS)]
        self._good = 0
        self.num_masks = 0

    def add(self, anomaly_map: np.ndarray, marked: np.ndarray | None = None) -> None:
        """
        Add a map.

        Args:
            anomaly_map (`np.ndarray` of shape `(height, width)`): the map, in [0, 1].
            marked (`np.ndarray` of the same shape, *optional*): bool mask of the defect. `None` for a good part.
        """
        keys = to_keys(np.asarray(anomaly_map, dtype=np.float32))
        if marked is None:
            number, positive = self._good, keys[:0, 0]
            self._good += 1
        else:
            number, positive = self.num_masks, keys[marked]
            self.num_masks += 1
        self._folds[number % FOLDS].add([keys.ravel()], positive, np.ones(len(positive)))

    def choose(self) -> tuple[float, float | None]:
        """
        Choose the threshold.

        Returns:
            `tuple[float, float]`: the threshold, in [0, 1], and the F1 of the pixels by cross-validation, in [0, 1].
            The F1 is `None` for one mask.
        """
        threshold = _best(self._folds)
        if self.num_masks < 2:
            return threshold, None
        counts = np.zeros(3)  # hits, false alarms, misses
        for fold in self._folds:
            limit = _best([other for other in self._folds if other is not fold])
            values, cells = fold.cells()
            above = values > limit
            hits = cells[POSITIVE, above].sum()
            counts += hits, cells[NEGATIVE, above].sum(), cells[POSITIVE].sum() - hits
        return threshold, float(2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]))


def _best(folds: list[PixelHistogram]) -> float:
    total = PixelHistogram()
    for fold in folds:
        total.add_state(fold.state())
    return max(0.0, f1_max(*total.cells())[1])


__all__ = ["PixelChoice"]
