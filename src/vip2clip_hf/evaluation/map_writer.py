"""Save the anomaly maps of a dataset."""

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
    Write the anomaly maps of a dataset to one file per category while they are computed.

    `<category>.npy` is a float16 array of shape `(images, height, width)`, to be read with
    `np.load(path, mmap_mode="r")`. `<category>.json` lists the images in the order of the rows.

    Args:
        folder (`str` or `os.PathLike`):
            Folder to write to, the same for all processes. Existing files of the same shape are kept, to resume.
        categories (`Sequence[str]`):
            Category of every image in the dataset.
        image_ids (`Sequence[str]`):
            Id of every image in the dataset.
        size (`int`):
            Side of a map in pixels.

    Raises:
        OSError: if there is not enough disk space, or the folder cannot be written.
    """

    def __init__(
        self, folder: str | os.PathLike, categories: Sequence[str], image_ids: Sequence[str], size: int
    ) -> None:
        folder = Path(folder)
        self._rows: list[tuple[str, int]] = []
        ids: dict[str, list[str]] = {}
        for category, image_id in zip(categories, image_ids):
            self._rows.append((category, len(ids.setdefault(category, []))))
            ids[category].append(image_id)
        names = file_names(list(ids))
        shapes: dict[str, tuple[int, ...]] = {category: (len(ids[category]), size, size) for category in ids}
        error: OSError | None = None
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
    def _create(
        folder: Path, ids: dict[str, list[str]], names: dict[str, str], shapes: dict[str, tuple[int, ...]]
    ) -> None:
        """Create the missing files, if there is enough disk space for them."""
        missing: dict[Path, tuple[int, ...]] = {}
        for category, name in names.items():
            path = folder / f"{name}.npy"
            if not path.exists() or np.load(path, mmap_mode="r").shape != shapes[category]:
                missing[path] = shapes[category]
        needed = sum(2 * int(np.prod(shape)) for shape in missing.values())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"The anomaly maps need {needed / 1e9:.1f} GB in {str(folder)!r}, but only {free / 1e9:.1f} GB are "
                "free; choose another disk, or do not save the maps."
            )
        for path, shape in missing.items():
            staged = path.with_suffix(".tmp")
            np.lib.format.open_memmap(staged, mode="w+", dtype=np.float16, shape=shape).flush()
            os.replace(staged, path)
        for category, name in names.items():
            content = {"category": category, "image_ids": ids[category]}
            write_atomically(folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write(self, positions: Sequence[int], maps: Any) -> None:
        """
        Write the maps of a batch.

        Args:
            positions (`Sequence[int]`): position of every image in the dataset.
            maps (`torch.Tensor` of shape `(batch_size, height, width)`): anomaly maps.
        """
        for position, values in zip(positions, maps):
            category, row = self._rows[position]
            self._arrays[category][row] = values.float().cpu().numpy()

    def flush(self) -> None:
        """Write all changes to disk."""
        for array in self._arrays.values():
            array.flush()

    def close(self) -> None:
        """Write all changes and close the files. On Windows, an open file cannot be moved."""
        self.flush()
        self._arrays.clear()


__all__ = ["MapWriter"]
