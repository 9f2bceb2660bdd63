"""Record the progress of an evaluation: scores, anomaly maps, and the images that are already evaluated."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.distributed import from_all, from_first, world
from .parts import read_parts


if TYPE_CHECKING:
    from .map_writer import MapWriter
    from .metrics import AnomalyMetrics


class EvaluationRecorder:
    """
    Keep the scores of an evaluation, and save its progress to resume after an interruption.

    Every process writes its own file with the images it has evaluated, their scores and its metrics. A later run reads
    the files of all earlier runs and evaluates the remaining images, on any number of processes.

    Args:
        num_images (`int`):
            Number of images in the dataset.
        folder (`str` or `os.PathLike`, *optional*):
            Folder for the progress, the same for all processes. If not set, nothing is saved.
        maps ([`MapWriter`], *optional*):
            Saves the anomaly maps.
        save_every (`float`, defaults to 60):
            Seconds between saves.
    """

    def __init__(
        self,
        num_images: int,
        folder: str | os.PathLike | None = None,
        maps: "MapWriter | None" = None,
        save_every: float = 60.0,
    ) -> None:
        self.num_images, self.maps, self.save_every = num_images, maps, save_every
        self.folder = None if folder is None else Path(folder)
        self.earlier: list[dict[str, np.ndarray]] = []
        self._path: Path | None = None
        self._positions: list[int] = []
        self._scores: list[float] = []
        self._saved_at = time.monotonic()

    def remaining(self) -> list[int]:
        """
        Read the progress of earlier runs. All processes must call it.

        Returns:
            `list[int]`: positions of the images that are not evaluated yet.

        Raises:
            OSError: if the folder cannot be read.
        """
        if self.folder is None:
            return list(range(self.num_images))
        parts: list[dict[str, np.ndarray]] = []
        run = 0
        if world()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = read_parts(self.folder)
            parts, run = list(found.values()), 1 + max(found, default=(-1, 0))[0]
        # Only the first process has them, so their metrics are added once.
        self.earlier = parts
        done, run = from_first(([part["recorder.positions"] for part in parts], run))
        self._path = self.folder / f"part-{run}-{world()[0]}.npz"
        left = np.ones(self.num_images, dtype=bool)
        for positions in done:
            left[positions] = False
        return np.flatnonzero(left).tolist()

    def add(self, positions: Sequence[int], scores: Any, maps: Any) -> None:
        """
        Add an evaluated batch.

        Args:
            positions (`Sequence[int]`): position of every image in the dataset.
            scores (`torch.Tensor` of shape `(batch_size,)`): image scores.
            maps (`torch.Tensor` of shape `(batch_size, height, width)`): anomaly maps.
        """
        if self.maps is not None:
            self.maps.write(positions, maps)
        self._positions += positions
        self._scores += scores.tolist()

    def save(self, metrics: "AnomalyMetrics", now: bool = False) -> None:
        """
        Save the progress of this process, if the last save was at least `save_every` seconds ago.

        Args:
            metrics ([`AnomalyMetrics`]): metrics of the images added by this process.
            now (`bool`, defaults to `False`): whether to save in any case.
        """
        waits = time.monotonic() - self._saved_at < self.save_every and not now
        if self._path is None or not self._positions or waits:
            return
        if metrics.num_images != len(self._positions):
            return  # interrupted between the two updates: the last saved state remains valid
        if self.maps is not None:
            self.maps.flush()
        staged = self._path.with_suffix(".tmp")
        state = metrics.state_dict()
        state["recorder.positions"], state["recorder.scores"] = np.array(self._positions), np.array(self._scores)
        with open(staged, "wb") as file:
            np.savez(file, **state)  # type: ignore[arg-type]  # numpy checks the dict against its bool option
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, self._path)
        self._saved_at = time.monotonic()

    def scores(self) -> np.ndarray:
        """
        Gather the scores of all processes. All processes must call it.

        Returns:
            `np.ndarray` of shape `(num_images,)`, float64: score of every image, NaN if it is not evaluated yet.
        """
        scores = np.full(self.num_images, np.nan)
        mine = [(part["recorder.positions"], part["recorder.scores"]) for part in self.earlier]
        for parts in from_all([*mine, (np.array(self._positions, dtype=np.int64), np.array(self._scores))]):
            for positions, values in parts:
                scores[positions] = values
        return scores


__all__ = ["EvaluationRecorder"]
