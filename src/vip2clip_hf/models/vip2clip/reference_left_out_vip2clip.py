"""References scored like new photos: each with the other references only."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .maps_vip2clip import resize_maps
from .reference_records_vip2clip import LeftOutPhoto
from .reference_rule_vip2clip import (
    LEAST_DISTANCE,
    evidence_level,
    image_evidence,
    map_evidence,
    to_score,
    top_mean,
)
from .tiling_vip2clip import TileBlender, tile_boxes


@dataclass
class _LeftOut:
    """Evidence of the views of a photo: `images` and `logits` of shape `(num_views,)`, `pixels` of shape
    `(num_views, image_size, image_size)`."""

    number: int
    images: torch.Tensor
    pixels: torch.Tensor
    logits: torch.Tensor
    distances: torch.Tensor


def _left_out(bank: Any) -> Iterator[_LeftOut]:
    for number in bank.view_photo.unique().tolist():
        views = bank.view_photo == number
        distances, logits = bank.view_distances[views], bank.view_logits[views]
        if bank.options.aligned:
            others = bank.view_distances[~views]
            distances = distances * position_offset(others if len(others) else distances)
        reference_maps = bank.maps(distances)
        reference_scores = top_mean(reference_maps)
        anomaly_maps = resize_maps(bank.view_maps[views], bank.image_size, bank.smoothing_sigma).clamp(0, 1)
        yield _LeftOut(
            number,
            image_evidence(reference_scores, logits, bank.weight),
            map_evidence(reference_maps, anomaly_maps),
            logits,
            reference_scores,
        )


def evidence_levels(bank: Any) -> tuple[float, float]:
    """
    Compute the evidence that becomes a score, or a value of a map, of 0.5.

    Args:
        bank ([`ReferenceBank`]): the references, with their weight.

    Returns:
        `tuple[float, float]`: level of images and of pixels, see [`evidence_level`].
    """
    found = [(float(one.images.max()), float(one.pixels.max())) for one in _left_out(bank)]
    return evidence_level([image for image, _ in found]), evidence_level([pixel for _, pixel in found])


def left_out_photos(bank: Any) -> Iterator[LeftOutPhoto]:
    """
    Score every reference like a new photo, see [`ReferenceBank.left_out`].

    Args:
        bank ([`ReferenceBank`]): the references.

    Yields:
        [`LeftOutPhoto`]: score and map of each photo.
    """
    for one in _left_out(bank):
        photo, maps = bank.photos[one.number], to_score(one.pixels, bank.pixel_level)
        anomaly_map = maps[0].numpy()
        if len(maps) > 1:
            boxes = tile_boxes(photo.height, photo.width, bank.options.tile_size, bank.options.tile_overlap)
            blender = TileBlender(photo.height, photo.width, boxes)
            for box, tile_map in zip(boxes, maps.numpy()):
                blender.add(box, tile_map)
            anomaly_map = blender.result()
        scores = to_score(one.images, bank.image_level)
        yield LeftOutPhoto(
            photo,
            float(scores.max()),
            anomaly_map,
            float(torch.sigmoid(one.logits.max())),
            float(one.distances.max()),
        )


def left_out_evidence(bank: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Compute what the scores of [`ReferenceBank.left_out`] consist of, to combine it with another weight.

    Args:
        bank ([`ReferenceBank`]): the references.

    Yields:
        `tuple[torch.Tensor, torch.Tensor]`: of each photo, the mean of the largest percent of the distance map and
        the zero-shot logit of its views, both of shape `(num_views,)`.
    """
    for one in _left_out(bank):
        yield one.distances, one.logits


def hide_photo(bank: Any, number: int) -> Any:
    """
    Copy a bank that does not compare with one of its photos, with scores on the same scale.

    Unlike with [`ReferenceBank.without`], weight and levels remain those of all photos, and the prepared features are
    shared. Use it to score changed versions of a reference like those of a new photo.

    Args:
        bank ([`ReferenceBank`]): the references.
        number (`int`): position of the photo in `bank.photos`.

    Returns:
        [`ReferenceBank`]: the copy. It is for scoring only.

    Raises:
        ValueError: if no photo is left to compare with.
    """
    first, last = (int(torch.searchsorted(bank.row_photo, number, right=right)) for right in (False, True))
    if last - first == len(bank.row_photo):
        raise ValueError("All references are hidden; expected at least one photo to compare with.")
    other = copy.copy(bank)
    other.hidden_rows, other._checksum = (first, last), None
    other.rows_on = bank.rows_on  # prepared once for all copies
    return other


def position_offset(distances: torch.Tensor) -> torch.Tensor:
    """
    Compute the factor of each position that makes the typical distances of references the same everywhere.

    Args:
        distances (`torch.FloatTensor` of shape `(num_photos, grid, grid)`): distances of references to the others.

    Returns:
        `torch.FloatTensor` of shape `(grid, grid)`: the factors. Their geometric mean is 1.
    """
    logs = distances.clamp_min(LEAST_DISTANCE).log().mean(dim=0)
    return (logs.mean() - logs).exp()


__all__ = ["evidence_levels", "hide_photo", "left_out_evidence", "left_out_photos", "position_offset"]
