"""What an evaluation keeps on the way: the score of every image, maps when asked, and how far it has come."""

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed import from_all, from_first, world
from ..files import write_atomically


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


class MapWriter:
    """
    Anomaly maps of a data set as one `(images, height, width)` float16 array a category, `<category>.npy`, written
    row by row as they come and read with `np.load(path, mmap_mode="r")`; `<category>.json` names the images in the
    order of its rows.

    Args:
        folder (`str` or `os.PathLike`):
            Where to write, the same for all processes. What is there of the same shape is gone on with.
        categories, image_ids (`Sequence[str]`):
            Of every image of the data set.
        size (`int`):
            Side of a map in pixels.

    Raises:
        OSError: the disk is too small.
    """

    def __init__(self, folder: str | os.PathLike, categories: Sequence[str], image_ids: Sequence[str], size: int):
        folder = Path(folder)
        self._rows: list[tuple[str, int]] = []
        ids: dict[str, list[str]] = {}
        for category, image_id in zip(categories, image_ids):
            self._rows.append((category, len(ids.setdefault(category, []))))
            ids[category].append(image_id)
        names = file_names(ids)
        shapes = {category: (len(ids[category]), size, size) for category in ids}
        error = None
        if world()[0] == 0:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._create(folder, ids, names, shapes)
            except OSError as raised:
                error = raised
        if (error := from_first(error)) is not None:
            raise error
        self._arrays = {
            category: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r+") for category, name in names.items()
        }

    @staticmethod
    def _create(folder: Path, ids: dict, names: dict, shapes: dict):
        missing = {}
        for category, name in names.items():
            path = folder / f"{name}.npy"
            if not path.exists() or np.load(path, mmap_mode="r").shape != shapes[category]:
                missing[path] = shapes[category]
        needed = sum(2 * int(np.prod(shape)) for shape in missing.values())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"The maps need {needed / 1e9:.1f} GB in {str(folder)!r}, where {free / 1e9:.1f} GB are free; choose "
                "another disk, or leave the maps out."
            )
        for path, shape in missing.items():
            staged = path.with_suffix(".tmp")
            np.lib.format.open_memmap(staged, mode="w+", dtype=np.float16, shape=shape).flush()
            os.replace(staged, path)
        for category, name in names.items():
            content = {"category": category, "image_ids": ids[category]}
            write_atomically(folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write(self, positions: Sequence[int], maps: Any):
        for position, values in zip(positions, maps):
            category, row = self._rows[position]
            self._arrays[category][row] = values.float().cpu().numpy()

    def flush(self):
        for array in self._arrays.values():
            array.flush()


def file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name for every name, different ones for different names, without anything that could lead elsewhere."""
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^\w.-]+", "_", name).strip(".")[:100] or "_"
        candidate, number = base, 1
        while candidate.lower() in taken:  # also where case does not tell files apart
            number += 1
            candidate = f"{base}-{number}"
        taken.add(candidate.lower())
        chosen[name] = candidate
    return chosen


__all__ = ["EvaluationRecorder", "MapWriter", "file_names"]
