"""Small pictures of photos and heatmaps for a report."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..models.vip2clip.heatmap_vip2clip import draw_heatmap
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..utils.pictures import data_uri, resized_map
from .photo_files import PhotoFiles


# Longer side of the pictures in pixels, by the largest number of photos: few photos get larger pictures.
SIDES = ((40, 480), (150, 320))
SMALLEST_SIDE = 192
# Decoding releases the lock of the interpreter. Each thread holds one decoded photo.
MOST_THREADS = 4


@dataclass
class Picture:
    """
    Pictures of a photo as data URIs.

    Args:
        photo (`str`, *optional*): the photo. `None` if it cannot be read.
        heatmap (`str`, *optional*): the photo with its heatmap. `None` if there is neither a map nor a heatmap.
        size (`tuple[int, int]`): width and height of the pictures.
        error (`str`, *optional*): why there is no picture.
    """

    photo: str | None = None
    heatmap: str | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None


def picture_side(count: int) -> int:
    """
    Choose the size of the pictures.

    Args:
        count (`int`): number of photos.

    Returns:
        `int`: longer side in pixels, from 192 to 480.
    """
    return next((side for most, side in SIDES if count <= most), SMALLEST_SIDE)


def make_pictures(
    files: PhotoFiles, positions: Sequence[int], side: int, on_picture: Callable[[], Any] | None = None
) -> dict[int, Picture]:
    """
    Read photos and draw their heatmaps, several at a time. Each photo is read once.

    Args:
        files ([`PhotoFiles`]): where the files are.
        positions (`Sequence[int]`): positions of the photos in the table.
        side (`int`): longer side of the pictures in pixels.
        on_picture (`Callable`, *optional*): called after each photo.

    Returns:
        `dict[int, Picture]`: pictures by position. A photo that cannot be read has the reason.
    """
    found: dict[int, Picture] = {}
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        for position, picture in zip(positions, pool.map(partial(_picture, files, side), positions)):
            found[position] = picture
            if on_picture is not None:
                on_picture()
    return found


def _picture(files: PhotoFiles, side: int, position: int) -> Picture:
    try:
        photo = small_photo(files.photo(position), side, files.reading)
    except (OSError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        return Picture(error=str(error) or type(error).__name__)
    heatmap, problem = None, None
    try:
        heatmap = _heatmap(files, position, photo)
    except (OSError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        problem = f"The heatmap cannot be read: {error}"
    return Picture(data_uri(photo), None if heatmap is None else data_uri(heatmap), photo.size, problem)


def small_photo(source: Any, side: int, reading: dict[str, Any] | None = None) -> Image.Image:
    """
    Read a photo at a small size. JPEG files are decoded at a fraction of their size, which is several times faster.

    Args:
        source (path or `dict`): the photo, see [`load_image`].
        side (`int`): longer side of the result in pixels; smaller photos are not enlarged.
        reading (`dict[str, Any]`, *optional*): how to read the photo, see [`load_image`].

    Returns:
        `PIL.Image.Image`: the upright photo, in mode RGB.

    Raises:
        OSError: if the photo cannot be read.
        ValueError: see [`load_image`].
    """
    content = source.get("bytes") if isinstance(source, dict) else None
    path = source.get("path") if isinstance(source, dict) else source
    if content is None and path is not None and os.path.isfile(path):
        with open(path, "rb") as file:
            content = file.read()
    image = source
    if content is not None:
        image = content
        if content[:3] == b"\xff\xd8\xff":  # JPEG
            opened = Image.open(BytesIO(content))
            if opened.format == "JPEG":
                opened.draft(None, (2 * side, 2 * side))  # still at least twice as large, to be reduced smoothly
                image = opened
    photo = load_image(image, **(reading or {}))
    photo.thumbnail((side, side))
    return photo


def _heatmap(files: PhotoFiles, position: int, photo: Image.Image) -> Image.Image | None:
    if (path := files.map_file(position)) is not None:  # small, and drawn at the size of the picture
        values = np.load(path, allow_pickle=False)
        if values.ndim != 2 or not np.isfinite(values).all():
            raise ValueError(f"{path.name} has shape {values.shape}; expected a finite map of two dimensions.")
        return draw_heatmap(photo, resized_map(values, photo.size))
    if (path := files.heatmap_file(position)) is not None:
        heatmap = load_image(path)
        return heatmap.resize(photo.size, Image.Resampling.BILINEAR, reducing_gap=2)
    return None


def legend() -> str:
    """
    Draw the colours of the heatmap from 0 to 1.

    Returns:
        `str`: data URI of a strip, 256 x 12 pixels.
    """
    values = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (12, 1))
    return data_uri(draw_heatmap(Image.new("RGB", (256, 12), (190, 190, 190)), values))


__all__ = ["Picture", "legend", "make_pictures", "picture_side", "small_photo"]
