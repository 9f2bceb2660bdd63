"""Anomaly maps of a dataset on disk."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.distributed import from_first, world
from ..utils.files import file_names, write_atomically


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


__all__ = ["MapWriter"]
