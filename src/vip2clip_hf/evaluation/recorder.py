"""What an evaluation keeps on the way: the score of every image, maps when asked, and how far it has come."""

import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.distributed import from_all, from_first, world


if TYPE_CHECKING:
    from .map_writer import MapWriter

_PART = re.compile(r"part-(\d+)-\d+\.npz")


class EvaluationRecorder:
    """
    Keeps scores, and on disk what is needed to go on after a stop.

    Every process writes its own part: which images it has evaluated, their scores, its metrics. Going on takes the
    parts of all runs before as they are and evaluates what is left, on any number of processes.

    Args:
        num_images (`int`):
            Images of the data set.
        folder (`str` or `os.PathLike`, *optional*):
            Where parts are kept, the same for all processes. Without it nothing is written.
        maps (`MapWriter`, *optional*):
            Takes the maps.
        save_every (`float`, defaults to 60):
            Seconds between two writings.
    """

    def __init__(
        self,
        num_images: int,
        folder: str | os.PathLike | None = None,
        maps: "MapWriter | None" = None,
        save_every: float = 60.0,
    ):
        self.num_images, self.maps, self.save_every = num_images, maps, save_every
        self.folder = None if folder is None else Path(folder)
        self.earlier: list[dict[str, np.ndarray]] = []
        self._path: Path | None = None
        self._positions: list[int] = []
        self._scores: list[float] = []
        self._saved_at = time.monotonic()

    def remaining(self) -> list[int]:
        """Positions in the data set that no run before has evaluated."""
        if self.folder is None:
            return list(range(self.num_images))
        parts, run = [], 0
        if world()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.folder.iterdir()):
                if match := _PART.fullmatch(path.name):
                    run = max(run, int(match[1]) + 1)
                    with np.load(path, allow_pickle=False) as file:
                        parts.append(dict(file))
        # The metrics of these parts are added once, by the first process.
        self.earlier = parts
        done, run = from_first(([part["recorder.positions"] for part in parts], run))
        self._path = self.folder / f"part-{run}-{world()[0]}.npz"
        left = np.ones(self.num_images, dtype=bool)
        for positions in done:
            left[positions] = False
        return np.flatnonzero(left).tolist()

    def add(self, positions: Sequence[int], scores: Any, maps: Any):
        """Images that have been evaluated, by position; `scores` and `maps` are tensors of the batch."""
        if self.maps is not None:
            self.maps.write(positions, maps)
        self._positions += positions
        self._scores += scores.tolist()

    def save(self, metrics: Any, now: bool = False):
        """Write where we are, every `save_every` seconds or now."""
        waits = time.monotonic() - self._saved_at < self.save_every and not now
        if self._path is None or not self._positions or waits:
            return
        if metrics.num_images != len(self._positions):
            return  # interrupted between the two: the state before stays
        if self.maps is not None:
            self.maps.flush()
        staged = self._path.with_suffix(".tmp")
        with open(staged, "wb") as file:
            np.savez(
                file,
                **metrics.state_dict(),
                **{"recorder.positions": np.array(self._positions), "recorder.scores": np.array(self._scores)},
            )
        os.replace(staged, self._path)
        self._saved_at = time.monotonic()

    def scores(self) -> np.ndarray:
        """The score of every image, float64; NaN where there is none yet. A call of all processes together."""
        scores = np.full(self.num_images, np.nan)
        mine = [(part["recorder.positions"], part["recorder.scores"]) for part in self.earlier]
        for parts in from_all([*mine, (np.array(self._positions, dtype=np.int64), np.array(self._scores))]):
            for positions, values in parts:
                scores[positions] = values
        return scores

    def finish(self):
        """Forget the parts, once the results are written."""
        if self.folder is not None and world()[0] == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


__all__ = ["EvaluationRecorder"]
