"""Build, combine and shorten banks of references."""

import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from .arguments_vip2clip import as_integer, check_tiling, is_finite
from .fingerprint_vip2clip import model_fingerprint
from .image_loading_vip2clip import DEFAULT_TIMEOUT, reading_options
from .image_processing_vip2clip import check_image_processor
from .pipeline_inputs_vip2clip import as_inputs, image_of, load_with_tiles
from .reference_distances_vip2clip import covering_rows
from .reference_records_vip2clip import ReferenceOptions, ReferencePhoto, photo_hash
from .reference_search_vip2clip import left_out_distances


logger = logging.get_logger(__name__)
# Number of photos that are scored with the others. Of more photos, a random sample is.
MAX_LEFT_OUT = 200
# The eight ways to turn and mirror a photo, the first of which keeps it.
TURNS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
# Number of photos needed to compare distances with those at the same place.
LEAST_ALIGNED = 4


def check_options(options: ReferenceOptions) -> ReferenceOptions:
    """
    Check the options of a bank.

    Args:
        options ([`ReferenceOptions`]): the options.

    Returns:
        [`ReferenceOptions`]: the options with Python's types.

    Raises:
        ValueError: if an option is out of range, or two options exclude each other.
    """
    size, overlap = check_tiling(16 if options.tile_size == 0 else options.tile_size, options.tile_overlap)
    limit, weight = options.max_patches, options.weight
    if weight is not None and not (is_finite(weight) and weight >= 0):
        raise ValueError(f"weight is {weight!r}; expected a number of at least 0, or None.")
    if options.aligned and (options.rotations or options.tile_size):
        other = "rotations" if options.rotations else "tile_size"
        raise ValueError(
            f"aligned is set together with {other}; expected one of them, because aligned compares each place of a "
            "photo with the same place of the references."
        )
    return ReferenceOptions(
        tile_size=size if options.tile_size else 0,
        tile_overlap=overlap if options.tile_size else 0.25,
        rotations=bool(options.rotations),
        aligned=bool(options.aligned),
        max_patches=None if limit is None else as_integer("max_patches", limit, least=1),
        weight=None if weight is None else float(weight),
    )


def check_aligned(options: ReferenceOptions, count: int) -> None:
    """
    Check that there are enough photos to compare distances with those at the same place.

    Args:
        options ([`ReferenceOptions`]): the options.
        count (`int`): number of photos.

    Raises:
        ValueError: if `aligned` is set with fewer than 4 photos.
    """
    if options.aligned and count < LEAST_ALIGNED:
        raise ValueError(
            f"aligned is set with {count} reference{'s' if count != 1 else ''}; expected at least {LEAST_ALIGNED}. "
            "Add photos, or set aligned=False."
        )


# Features (L, P, D), zero-shot logit and patch map (grid, grid) of a view. A turned view has no map.
View = tuple[torch.Tensor, float, torch.Tensor | None]


class _Collected:
    """
    Features of the photos so far. If there are many patches, a covering subset of them is kept.

    Args:
        options ([`ReferenceOptions`]): how photos are read.
    """

    def __init__(self, options: ReferenceOptions) -> None:
        self.options, self.reduced = options, False
        self.photos: list[ReferencePhoto] = []
        self.views: dict[int, list[View]] = {}
        self._blocks: list[torch.Tensor] = []
        self._row_photo: list[torch.Tensor] = []
        self._random = random.Random(0)

    def add(self, photo: ReferencePhoto, views: list[View]) -> None:
        """Add a photo, as features (L, P, D), logit and patch map of its views. Those of turned views come last and
        have no map."""
        number = len(self.photos)
        self.photos.append(photo)
        block = torch.cat([features for features, _, _ in views], dim=1)
        self._append(block, torch.full((block.shape[1],), number, dtype=torch.int32))
        own = [view for view in views if view[2] is not None]
        if len(self.views) < MAX_LEFT_OUT:
            self.views[number] = own
        elif (place := self._random.randrange(number + 1)) < MAX_LEFT_OUT:
            del self.views[list(self.views)[place]]
            self.views[number] = own
        limit = self.options.max_patches
        if limit is not None and sum(block.shape[1] for block in self._blocks) > 2 * limit:
            self.reduce()

    def _append(self, block: torch.Tensor, row_photo: torch.Tensor) -> None:
        self._blocks.append(block)
        self._row_photo.append(row_photo)

    def reduce(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features and the photo of each row, at most `max_patches` rows."""
        rows, row_photo = torch.cat(self._blocks, dim=1), torch.cat(self._row_photo)
        limit = self.options.max_patches
        if limit is not None and rows.shape[1] > limit:
            if not self.reduced:
                logger.warning(
                    f"The references have more than {limit:,} patches; a subset of {limit:,} patches that covers them "
                    "is kept. Set max_patches to change the number."
                )
            chosen = covering_rows(rows, limit)
            rows, row_photo, self.reduced = rows[:, chosen], row_photo[chosen], True
        self._blocks, self._row_photo = [rows], [row_photo]
        return rows, row_photo


def build_bank(
    model: Any,
    image_processor: Any,
    images: Any,
    options: ReferenceOptions,
    *,
    top_k: int | None = None,
    reading: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> dict[str, Any]:
    """Return the arguments of a [`ReferenceBank`], see [`ReferenceBank.from_images`]."""
    options = check_options(options)
    check_image_processor(image_processor, model.config.image_size)
    as_integer("batch_size", batch_size, least=1)
    if model.device.type == "meta":
        raise ValueError("The model is on the device 'meta', so it has no weights; expected a loaded model.")
    reading = {**reading_options(image_processor), **(reading or {})}
    collected, seen = _Collected(options), _Seen()
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batch: list[tuple[ReferencePhoto, list[Image.Image], int]] = []
            for photo, views, own in _read(images, options, reading, seen, progress):
                batch.append((photo, views, own))
                if sum(len(views) for _, views, _ in batch) >= batch_size:
                    _compute(model, image_processor, batch, collected, top_k, batch_size)
                    batch = []
            _compute(model, image_processor, batch, collected, top_k, batch_size)
    finally:
        model.train(was_training)
    if not collected.photos:
        raise ValueError("There are no reference photos; expected at least one photo of a good part.")
    seen.warn()
    features, row_photo = collected.reduce()
    numbers = sorted(collected.views)
    scored = [(number, *view) for number in numbers for view in collected.views[number]]
    view_photo = torch.tensor([number for number, *_ in scored], dtype=torch.int32)
    view_features = torch.stack([found for _, found, _, _ in scored])  # (V, L, P, D)
    distances = left_out_distances(view_features, view_photo, features, row_photo)
    return {
        "features": features,
        "row_photo": row_photo,
        "photos": collected.photos,
        "view_photo": view_photo,
        "view_logits": torch.tensor([logit for _, _, logit, _ in scored], dtype=torch.float32),
        "view_maps": torch.stack([found for *_, found in scored if found is not None]),
        "view_distances": distances,
        "options": options,
        "fingerprint": model_fingerprint(model),
        "reduced": collected.reduced,
    }


class _Seen:
    """Names and contents of the photos so far, to report what is unusual once."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.hashes: dict[str, str] = {}
        self.duplicates: list[str] = []
        self.sizes: set[tuple[int, int]] = set()
        self.gray: set[bool] = set()

    def photo(self, name: str, image: Image.Image) -> ReferencePhoto | None:
        """Describe a photo, or return None if another one has the same pixels."""
        digest = photo_hash(image)
        if digest in self.hashes:
            self.duplicates.append(f"{name} (same as {self.hashes[digest]})")
            return None
        unique, number = name, 1
        while unique in self.names:
            number += 1
            unique = f"{name} ({number})"
        self.names.add(unique)
        self.hashes[digest] = unique
        self.sizes.add(image.size)
        small = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST))
        self.gray.add(bool((small == small[..., :1]).all()))
        return ReferencePhoto(unique, digest, image.height, image.width)

    def warn(self) -> None:
        """Report duplicates and mixed photos."""
        if self.duplicates:
            logger.warning(
                f"{len(self.duplicates)} references have the same pixels as others and are used once: "
                f"{', '.join(self.duplicates[:5])}{', ...' if len(self.duplicates) > 5 else ''}."
            )
        if len(self.sizes) > 1:
            first, *_, last = sorted(self.sizes)
            logger.warning_once(
                f"The references differ in size, from {first[0]} x {first[1]} to {last[0]} x {last[1]} pixels; all of "
                "them are resized to the size of the model."
            )
        if len(self.gray) > 1:
            logger.warning_once(
                "Some references are gray and some are in color; all of them are converted to RGB. Scores are best if "
                "the references look like the photos to score."
            )


def _read(
    images: Any, options: ReferenceOptions, reading: Mapping[str, Any], seen: _Seen, progress: bool
) -> Iterator[tuple[ReferencePhoto, list[Image.Image], int]]:
    """Yield photos with their views. The first views are those of the photo as it is; their number is yielded too."""
    root = os.fspath(images) if isinstance(images, (str, os.PathLike)) else None
    inputs = as_inputs(images)
    if isinstance(inputs, (str, os.PathLike, Image.Image, dict, bytes, np.ndarray, torch.Tensor)):
        inputs, root = [inputs], None
    settings = {"tile_size": options.tile_size, "tile_overlap": options.tile_overlap}
    total = len(inputs) if hasattr(inputs, "__len__") else None
    for number, item in enumerate(logging.tqdm(inputs, desc="references", total=total, disable=not progress)):
        image, boxes = load_with_tiles(item, DEFAULT_TIMEOUT, reading, settings)
        photo = seen.photo(_name_of(item, root, number), image)
        if photo is None:
            continue
        views = [image.crop(box) for box in boxes] or [image]
        turned = [view.transpose(turn) for turn in TURNS[1:] for view in views] if options.rotations else []
        yield photo, [*views, *turned], len(views)


def _name_of(item: Any, root: str | None, number: int) -> str:
    item = image_of(item)
    path = item.get("path") if isinstance(item, Mapping) else item
    if not isinstance(path, (str, os.PathLike)) or len(os.fsdecode(path)) > 1024:
        return f"photo {number + 1}"
    path = os.fsdecode(path)
    name = os.path.basename(path) if root is None else os.path.relpath(path, root)
    return name.replace(os.sep, "/").encode("utf-8", "replace").decode()


def _compute(
    model: Any,
    image_processor: Any,
    batch: list[tuple[ReferencePhoto, list[Image.Image], int]],
    collected: _Collected,
    top_k: int | None,
    batch_size: int,
) -> None:
    """Compute features, zero-shot logit and patch map of the views of some photos."""
    crops = [view for _, views, _ in batch for view in views]
    found: list[View] = []
    top_k = model.decision.top_k if top_k is None else top_k
    for start in range(0, len(crops), batch_size):
        pixel_values = image_processor(crops[start : start + batch_size], return_tensors="pt")["pixel_values"]
        images = model.get_image_features(pixel_values.to(model.device), return_dict=True)
        outputs = model(
            image_embeds=images.image_embeds, patch_embeds=images.patch_embeds, top_k=top_k, references=None
        )
        layers = max(1, images.patch_embeds.shape[1] - 1)  # all but the last
        features = images.patch_embeds[:, :layers].half().cpu()  # (B, L, P, D)
        logits = (outputs.logits[:, 1] - outputs.logits[:, 0]).float().cpu()
        maps = outputs.layer_maps[:, :, 1].mean(dim=1).float().cpu()  # (B, grid, grid)
        if not all(torch.isfinite(part).all() for part in (features, logits, maps)):
            raise ValueError(
                "The features of the references contain NaN or infinite values. In float16, CLIP can overflow; load "
                "the model in bfloat16 or float32."
            )
        found += zip(features, logits.tolist(), maps)
    for photo, views, own in batch:
        collected.add(
            photo, [(*one[:2], one[2] if place < own else None) for place, one in enumerate(found[: len(views)])]
        )
        del found[: len(views)]


__all__ = ["MAX_LEFT_OUT", "build_bank", "check_aligned", "check_options"]
