"""Combine and shorten banks of references."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers.utils import logging

from .fingerprint_vip2clip import calibration_differences
from .reference_building_vip2clip import MAX_LEFT_OUT
from .reference_distances_vip2clip import covering_rows
from .reference_records_vip2clip import ReferenceOptions, ReferencePhoto
from .reference_search_vip2clip import left_out_distances


logger = logging.get_logger(__name__)


def merge_banks(bank: Any, other: Any) -> dict[str, Any] | None:
    """Return the arguments of the bank that combines two, see [`ReferenceBank.merge`]. `None` if there are no new
    photos."""
    if not hasattr(other, "row_photo"):
        raise ValueError(f"other is of type {type(other).__name__}; expected a ReferenceBank. For photos, use add.")
    # Compare values, not classes: remote code is loaded as separate copies of the classes.
    if asdict(bank.options) != asdict(other.options):
        raise ValueError(f"The references were read with {other.options}; expected {bank.options}.")
    if bank.fingerprint != other.fingerprint:
        changed = ", ".join(calibration_differences({"fingerprint": bank.fingerprint}, other.fingerprint, {}))
        raise ValueError(
            f"The references belong to different models ({changed or 'other weights'}); expected references of one "
            "model."
        )
    known = {photo.sha256 for photo in bank.photos}
    new = [number for number, photo in enumerate(other.photos) if photo.sha256 not in known]
    if len(new) < len(other.photos):
        logger.warning(f"{len(other.photos) - len(new)} photos are already among the references.")
    if not new:
        return None
    if len(new) < len(other.photos):
        other = type(other)(**keep_photos(other, new))
    seen = {photo.name for photo in bank.photos}
    photos = list(bank.photos)
    for photo in other.photos:
        name, count = photo.name, 1
        while name in seen:
            count += 1
            name = f"{photo.name} ({count})"
        seen.add(name)
        photos.append(replace(photo, name=name))
    offset = len(bank.photos)
    return _rebuilt(
        torch.cat([bank.features, other.features], dim=1),
        torch.cat([bank.row_photo, other.row_photo + offset]),
        photos,
        torch.cat([bank.view_photo, other.view_photo + offset]),
        *(torch.cat([getattr(bank, n), getattr(other, n)]) for n in ("view_logits", "view_maps", "view_distances")),
        options=bank.options,
        fingerprint=bank.fingerprint,
        reduced=bank.reduced or other.reduced,
    )


def keep_photos(bank: Any, numbers: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a bank with some photos of a bank, see [`ReferenceBank.without`]."""
    if not len(numbers):
        raise ValueError("All references are left out; expected at least one photo to remain.")
    if bank.reduced:
        raise ValueError(
            "The references are a subset of the patches of many photos, so photos cannot be left out; expected a bank "
            "with all patches. Build it again from the photos."
        )
    place = torch.full((len(bank.photos),), -1, dtype=torch.int32)
    place[torch.tensor(list(numbers))] = torch.arange(len(numbers), dtype=torch.int32)
    rows, views = place[bank.row_photo.long()], place[bank.view_photo.long()]
    if not (views >= 0).any():
        raise ValueError("None of these photos was scored with the others; expected another choice of photos.")
    return _rebuilt(
        bank.features[:, rows >= 0],
        rows[rows >= 0],
        [bank.photos[number] for number in numbers],
        views[views >= 0],
        *(getattr(bank, name)[views >= 0] for name in ("view_logits", "view_maps", "view_distances")),
        options=bank.options,
        fingerprint=bank.fingerprint,
        reduced=False,
    )


def _rebuilt(
    features: torch.Tensor,
    row_photo: torch.Tensor,
    photos: list[ReferencePhoto],
    view_photo: torch.Tensor,
    view_logits: torch.Tensor,
    view_maps: torch.Tensor,
    view_distances: torch.Tensor,
    *,
    options: ReferenceOptions,
    fingerprint: Mapping[str, Any],
    reduced: bool,
) -> dict[str, Any]:
    """Return the arguments of a bank of changed rows. Distances are computed again if all patches are known. Otherwise
    they remain those to fewer photos, which are never too small."""
    scored = sorted(set(view_photo.tolist()))
    if len(scored) > MAX_LEFT_OUT:
        some = torch.tensor(sorted(random.Random(0).sample(scored, MAX_LEFT_OUT)))
        chosen = torch.isin(view_photo, some)
        view_photo, view_logits, view_maps, view_distances = (
            tensor[chosen] for tensor in (view_photo, view_logits, view_maps, view_distances)
        )
    limit = options.max_patches
    if not reduced:
        patches, places = view_distances.shape[1] * view_distances.shape[2], []
        counts: dict[int, int] = {}
        for number in view_photo.tolist():  # the views of a photo are its first rows, in order
            first = int(torch.searchsorted(row_photo, number)) + counts.get(number, 0) * patches
            counts[number] = counts.get(number, 0) + 1
            places.append(torch.arange(first, first + patches))
        view_features = torch.stack([features[:, place] for place in places])
    too_many = False
    if limit is not None and features.shape[1] > limit:
        too_many = True
        chosen = covering_rows(features, limit)
        features, row_photo = features[:, chosen], row_photo[chosen]
    if not reduced:
        view_distances = left_out_distances(view_features, view_photo, features, row_photo)
    reduced = reduced or too_many
    return {
        "features": features,
        "row_photo": row_photo,
        "photos": photos,
        "view_photo": view_photo,
        "view_logits": view_logits,
        "view_maps": view_maps,
        "view_distances": view_distances,
        "options": options,
        "fingerprint": fingerprint,
        "reduced": reduced,
    }


__all__ = ["keep_photos", "merge_banks"]
