"""Scores and maps of calibration images."""

import os
from collections.abc import Iterable
from typing import Any


def decision_maps(detector, images: Iterable[Any], unreadable: dict[str, str], progress: bool):
    """Name and result of every image that can be read, with the map at the size of the model (or of the photo, where
    it is seen in tiles)."""
    from tqdm.auto import tqdm

    for number, image in enumerate(tqdm(images, desc="calibrating", disable=not progress)):
        name = str(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
        try:
            yield name, detector.decision_map(image)
        except OSError as error:
            unreadable[name] = str(error)


__all__ = ["decision_maps"]
