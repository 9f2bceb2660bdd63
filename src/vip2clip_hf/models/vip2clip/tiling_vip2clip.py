"""Split large and elongated images into overlapping square tiles, and blend the maps of the tiles."""

import math

import numpy as np

from .arguments_vip2clip import check_tiling
from .interpolation_vip2clip import resize_map
from .logging_vip2clip import get_logger


logger = get_logger(__name__)
Box = tuple[int, int, int, int]
# Longest side of a photo divided by its shortest.
MAX_ASPECT_RATIO = 50
# Most tiles of a photo.
MAX_TILES = 4096


def check_elongation(height: int, width: int) -> None:
    """
    Say once that a photo without tiles is much longer than wide, because it is resized to a square.

    Args:
        height, width (`int`): size of the image in pixels.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        logger.warning_once(
            f"A photo is more than {MAX_ASPECT_RATIO} times as long as it is wide. It is resized to a square, in "
            "which defects can disappear; cut it into shorter pieces."
        )


def _count(length: int, side: int, overlap: float) -> int:
    """Return the number of tiles along an axis."""
    return max(1, math.ceil((length - side) / max(1.0, side * (1 - overlap))) + 1)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Return the evenly spaced starts of tiles along an axis. The first and last tile touch the edges."""
    count = _count(length, side, overlap)
    return [round(index * (length - side) / max(1, count - 1)) for index in range(count)]


def tile_boxes(height: int, width: int, tile_size: int, tile_overlap: float = 0.25) -> list[Box]:
    """
    Compute square tiles that cover an image.

    Args:
        height, width (`int`): size of the image in pixels.
        tile_size (`int`): side of a tile in pixels, at least 16. Limited to the shorter side of the image.
        tile_overlap (`float`, defaults to 0.25): minimum fraction of the side that adjacent tiles share, in [0, 0.9].

    Returns:
        `list[tuple[int, int, int, int]]`: left, top, right and bottom of every tile, row by row. Empty if the image
        fits into one tile and needs no tiling.

    Raises:
        ValueError: if `tile_size` or `tile_overlap` is out of range, if the image is more than 50 times as long as it
            is wide, or if it has more than 4,096 tiles.
    """
    tile_size, tile_overlap = check_tiling(tile_size, tile_overlap)
    if tile_size >= max(height, width):
        return []
    side = min(tile_size, height, width)
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"The photo has {width} x {height} pixels, so one side is more than {MAX_ASPECT_RATIO} times the other; "
            "expected a photo that is less elongated. Cut it into shorter pieces, or set tile_size=0."
        )
    count = _count(height, side, tile_overlap) * _count(width, side, tile_overlap)
    if count > MAX_TILES:
        raise ValueError(
            f"tile_size is {tile_size} with tile_overlap {tile_overlap:g}, which gives {count:,} tiles for a photo of "
            f"{width} x {height} pixels; expected at most {MAX_TILES:,}. Use larger tiles or less overlap."
        )
    tops, lefts = _starts(height, side, tile_overlap), _starts(width, side, tile_overlap)
    return [(left, top, left + side, top + side) for top in tops for left in lefts]


class TileBlender:
    """
    Blend the maps of tiles into the map of the image.

    The result is a weighted mean. The weight of a tile decreases towards its edges, which avoids visible seams. The
    memory used is one float32 map of the size of the image.

    Args:
        height, width (`int`): size of the image in pixels.
        boxes (`list[tuple[int, int, int, int]]`): tiles from [`tile_boxes`], at least one.
    """

    def __init__(self, height: int, width: int, boxes: list[Box]) -> None:
        self._sum = np.zeros((height, width), dtype=np.float32)
        side = boxes[0][2] - boxes[0][0]
        distance = np.arange(side, dtype=np.float32) + np.float32(0.5)
        self._window = np.minimum(distance, side - distance) / side
        # The tiles form a grid, so the sum of all windows is a product of sums over rows and columns.
        self._rows, self._columns = (np.zeros(length, dtype=np.float32) for length in (height, width))
        for top in {box[1] for box in boxes}:
            self._rows[top : top + side] += self._window
        for left in {box[0] for box in boxes}:
            self._columns[left : left + side] += self._window

    def add(self, box: Box, anomaly_map: np.ndarray) -> None:
        """
        Add the map of a tile.

        Args:
            box (`tuple[int, int, int, int]`): the tile, one of the boxes.
            anomaly_map (`np.ndarray` of shape `(size, size)`): its map in [0, 1], of any size.
        """
        left, top, right, bottom = box
        weighted = resize_map(anomaly_map, (bottom - top, right - left))
        weighted *= self._window[:, None]
        weighted *= self._window
        self._sum[top:bottom, left:right] += weighted

    def result(self) -> np.ndarray:
        """
        Finish blending. Call it once, after all tiles are added.

        Returns:
            `np.ndarray` of shape `(height, width)`: the blended map, float32 in [0, 1].
        """
        self._sum /= self._rows[:, None]
        self._sum /= self._columns
        return np.clip(self._sum, 0, 1, out=self._sum)


__all__ = ["MAX_ASPECT_RATIO", "MAX_TILES", "TileBlender", "check_elongation", "tile_boxes"]
