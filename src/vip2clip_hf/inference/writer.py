"""Write heatmaps and anomaly maps in background threads."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from .image_files import IMAGE_FOLDERS
from .images import Images
from .names import Names, SomeNames
from .single import heatmap_of, reason_of


# Number of threads, and of maps that can wait for them.
WRITERS, WAITING = 4, 16


class ImageWriter:
    """
    Write heatmaps and anomaly maps in background threads, while the model continues.

    Images are opened a second time to draw heatmaps, so they need not be kept in memory. Use the writer in a `with`
    block.

    Args:
        images ([`Images`]): all images of the prediction.
        names ([`Names`] or [`SomeNames`]): their names.
        image_processor ([`ViP2ClipImageProcessor`]): resizes maps to the size of the image.
        folder (`pathlib.Path`): output folder.
        heatmaps (`bool`): whether to write heatmaps.
        maps (`bool`): whether to write anomaly maps.
        reading (`dict[str, Any]`, *optional*): how to read images, see [`load_image`].
    """

    def __init__(
        self,
        images: Images,
        names: Names | SomeNames,
        image_processor: ViP2ClipImageProcessor,
        folder: Path,
        heatmaps: bool,
        maps: bool,
        reading: dict[str, Any] | None = None,
    ) -> None:
        self.reading = reading or {}
        self.images, self.names, self.image_processor = images, names, image_processor
        self.folder, self.heatmaps, self.maps = folder, heatmaps, maps
        self._pool = ThreadPoolExecutor(WRITERS)
        self._waiting: deque[tuple[int, Future]] = deque()
        self._failed: dict[int, str] = {}

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, position: int, anomaly_map: torch.Tensor) -> None:
        """
        Write the files of an image in the background. Blocks while too many maps are waiting.

        Args:
            position (`int`): position of the image.
            anomaly_map (`torch.Tensor` of shape `(height, width)`): float, in [0, 1].

        Raises:
            OSError: if a file of an earlier image could not be written.
        """
        if not (self.heatmaps or self.maps):
            return
        self._waiting.append((position, self._pool.submit(self._write, position, anomaly_map.cpu())))
        while len(self._waiting) > WAITING:
            self._collect()

    def wait(self) -> dict[int, str]:
        """
        Wait until all files are written.

        Returns:
            `dict[int, str]`: position of each image that could not be read again, and the reason.

        Raises:
            OSError: if a file could not be written.
        """
        while self._waiting:
            self._collect()
        failed, self._failed = self._failed, {}
        return failed

    def _collect(self) -> None:
        position, future = self._waiting.popleft()
        if (reason := future.result()) is not None:
            self._failed[position] = reason

    def _write(self, position: int, anomaly_map: torch.Tensor) -> str | None:
        name = self.names[position]
        if self.heatmaps:
            try:
                source, _ = self.images.read(position, name, self.names.location(position))
                image = load_image(source, **self.reading)
            except (OSError, ValueError) as error:
                return reason_of(error)
            heatmap = heatmap_of(image, anomaly_map, self.image_processor)
            self._save("heatmaps", position, name, lambda file: heatmap.save(file, format="PNG"))
        if self.maps:
            values = anomaly_map.numpy().astype(np.float16)
            self._save("maps", position, name, lambda file: np.save(file, values))
        return None

    def _save(self, kind: str, position: int, name: bytes, save: Callable[[Any], Any]) -> None:
        target = Path(f"{self.folder / kind / self.images.file(position, name)}{IMAGE_FOLDERS[kind]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{position}.tmp")
        with open(staged, "wb") as file:
            save(file)
        os.replace(staged, target)


__all__ = ["ImageWriter"]
