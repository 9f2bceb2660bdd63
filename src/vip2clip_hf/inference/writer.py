"""Heatmaps and maps, written by threads beside the model."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.vip2clip.heatmap_vip2clip import draw_heatmap
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from .folder import IMAGE_FOLDERS
from .images import DatasetImages, FolderImages
from .names import Names


# Heatmaps that are drawn at the same time, and maps that may wait for it.
WRITERS, WAITING = 4, 16


class ImageWriter:
    """
    Writes heatmaps and maps beside the model, which waits only when too many have gathered. Photos are opened again
    for drawing, so that none has to be kept.
    """

    def __init__(
        self,
        images: FolderImages | DatasetImages,
        names: Names,
        image_processor: ViP2ClipImageProcessor,
        folder: Path,
        heatmaps: bool,
        maps: bool,
    ):
        self.images, self.names, self.image_processor = images, names, image_processor
        self.folder, self.heatmaps, self.maps = folder, heatmaps, maps
        self._pool = ThreadPoolExecutor(WRITERS)
        self._waiting: deque[tuple[int, Future]] = deque()
        self._failed: dict[int, str] = {}

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)

    def add(self, position: int, anomaly_map: torch.Tensor):
        """The map of an image, of shape `(height, width)`."""
        if not (self.heatmaps or self.maps):
            return
        self._waiting.append((position, self._pool.submit(self._write, position, anomaly_map.cpu())))
        while len(self._waiting) > WAITING:
            self._collect()

    def wait(self) -> dict[int, str]:
        """Until all is written. Images that could not be read again, and why."""
        while self._waiting:
            self._collect()
        failed, self._failed = self._failed, {}
        return failed

    def _collect(self):
        position, future = self._waiting.popleft()
        if (reason := future.result()) is not None:
            self._failed[position] = reason

    def _write(self, position: int, anomaly_map: torch.Tensor) -> str | None:
        name = self.names[position]
        if self.heatmaps:
            try:
                photo = load_image(self.images.image(position, name))
            except (OSError, ValueError) as error:
                return reason_of(error)
            (result,) = self.image_processor.post_process_anomaly_detection(
                {"scores": torch.zeros(1), "anomaly_maps": anomaly_map[None]}, [(photo.height, photo.width)]
            )
            picture = draw_heatmap(photo, result["anomaly_map"].numpy())
            self._save("heatmaps", position, name, lambda file: picture.save(file, format="PNG"))
        if self.maps:
            values = anomaly_map.numpy().astype(np.float16)
            self._save("maps", position, name, lambda file: np.save(file, values))
        return None

    def _save(self, kind: str, position: int, name: bytes, save: Callable[[Any], Any]):
        target = Path(f"{self.folder / kind / self.images.file(position, name)}{IMAGE_FOLDERS[kind]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{position}.tmp")
        with open(staged, "wb") as file:
            save(file)
        os.replace(staged, target)


def reason_of(error: Exception) -> str:
    return str(error).encode("utf-8", "backslashreplace").decode()


__all__ = ["ImageWriter", "reason_of"]
