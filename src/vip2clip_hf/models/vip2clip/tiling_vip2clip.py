"""Large and elongated photos in overlapping square tiles, their maps blended."""

import math

import torch
import torch.nn.functional as F


Box = tuple[int, int, int, int]


def check_tiling(tile_size: int, tile_overlap: float):
    """
    Raises:
        ValueError: a side below 16 pixels, or an overlap outside [0, 0.9].
    """
    if not isinstance(tile_size, int) or isinstance(tile_size, bool) or tile_size < 16:
        raise ValueError(f"tile_size is {tile_size!r}; expected a side of at least 16 pixels, or 0 for no tiles.")
    if isinstance(tile_overlap, bool) or not 0 <= tile_overlap <= 0.9:
        raise ValueError(f"tile_overlap is {tile_overlap!r}; expected a share of the tile in [0, 0.9].")


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Evenly spread, the first at the one edge and the last at the other."""
    count = max(1, math.ceil((length - side) / max(1.0, side * (1 - overlap))) + 1)
    return [round(index * (length - side) / max(1, count - 1)) for index in range(count)]


def tile_boxes(height: int, width: int, tile_size: int, tile_overlap: float = 0.25) -> list[Box]:
    """
    Square tiles that cover an image, row by row.

    Args:
        height, width (`int`): of the image in pixels.
        tile_size (`int`): side of a tile in pixels of the image; never more than its shorter side.
        tile_overlap (`float`, defaults to 0.25): share of the side that neighbours have in common at least, in
            [0, 0.9].

    Returns:
        `list[tuple[int, int, int, int]]`: left, top, right, bottom of every tile. Empty when the image is no larger
        than one tile: it is then seen as a whole.

    Raises:
        ValueError: see [`check_tiling`].
    """
    check_tiling(tile_size, tile_overlap)
    if tile_size >= max(height, width):
        return []
    side = min(tile_size, height, width)
    tops, lefts = _starts(height, side, tile_overlap), _starts(width, side, tile_overlap)
    return [(left, top, left + side, top + side) for top in tops for left in lefts]


class TileBlender:
    """
    The map of an image from the maps of its tiles: a mean in which every tile counts less towards its edges, so that
    no seam shows. Holds one float32 map of the size of the image.

    Args:
        height, width (`int`): of the image in pixels.
        boxes (`list[tuple[int, int, int, int]]`): from [`tile_boxes`].
    """

    def __init__(self, height: int, width: int, boxes: list[Box]):
        self._sum = torch.zeros(height, width)
        side = boxes[0][2] - boxes[0][0]
        distance = torch.arange(side, dtype=torch.float32) + 0.5
        self._window = torch.minimum(distance, side - distance) / side
        # The tiles stand in rows and columns, so that the sum of all windows is a product.
        self._rows, self._columns = torch.zeros(height), torch.zeros(width)
        for top in {box[1] for box in boxes}:
            self._rows[top : top + side] += self._window
        for left in {box[0] for box in boxes}:
            self._columns[left : left + side] += self._window

    def add(self, box: Box, anomaly_map: torch.Tensor):
        """The map of one tile, `(size, size)`, in [0, 1]."""
        left, top, right, bottom = box
        size = (bottom - top, right - left)
        resized = F.interpolate(anomaly_map.float().cpu()[None, None], size, mode="bilinear", align_corners=False)[
            0, 0
        ]
        self._sum[top:bottom, left:right] += resized * self._window[:, None] * self._window

    def result(self) -> torch.Tensor:
        """The blended map, `(height, width)`, float32 in [0, 1]. Ends the blending."""
        return self._sum.div_(self._rows[:, None]).div_(self._columns).clamp_(0, 1)


__all__ = ["TileBlender", "check_tiling", "tile_boxes"]
