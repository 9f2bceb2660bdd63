"""Score photos with references, and the evidence their scores consist of."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import TILES_AT_ONCE
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..models.vip2clip.reference_records_vip2clip import ReferenceOptions
from ..models.vip2clip.tiling_vip2clip import tile_boxes
from .photos import Photo


def rebuilt(bank: ReferenceBank, names: Sequence[str] | None = None, **options: Any) -> ReferenceBank:
    """
    Copy a bank with other names of its photos or other options, such as `weight`.

    Args:
        bank ([`ReferenceBank`]): the references.
        names (`Sequence[str]`, *optional*): name of each photo.
        options: fields of [`ReferenceOptions`] that do not change the features.

    Returns:
        [`ReferenceBank`]: the copy.
    """
    photos = bank.photos
    if names is not None:
        photos = tuple(replace(photo, name=name) for photo, name in zip(photos, names, strict=True))
    return ReferenceBank(
        **bank.tensors(),
        photos=photos,
        options=replace(bank.options, **options),
        fingerprint=bank.fingerprint,
        reduced=bank.reduced,
    )


def build(
    detector: AnomalyDetectionPipeline, photos: Sequence[Photo], options: ReferenceOptions, progress: bool = False
) -> ReferenceBank:
    """
    Build the references from photos that can be read and differ.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        photos (`Sequence[Photo]`): the photos.
        options ([`ReferenceOptions`]): options of the bank.
        progress (`bool`, defaults to `False`): whether to show a progress bar.

    Returns:
        [`ReferenceBank`]: the references, with the names of the photos.

    Raises:
        OSError: if a photo cannot be read.
        ValueError: if an option is out of range.
    """
    bank = ReferenceBank.from_images(
        detector.model,
        detector.image_processor,
        [photo.source for photo in photos],
        **{name: getattr(options, name) for name in ReferenceOptions.__dataclass_fields__},
        top_k=detector.score_settings()["top_k"],
        reading=detector.reading_options(),
        progress=progress,
    )
    return rebuilt(bank, [photo.name for photo in photos])


def view_evidence(
    detector: AnomalyDetectionPipeline, bank: ReferenceBank, image: Image.Image
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Compute the distance and the zero-shot logit of a photo, or of each of its tiles.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        bank ([`ReferenceBank`]): the references.
        image (`PIL.Image.Image`): the photo, in mode RGB.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean of the largest percent of the distance map, and logit of the
        zero-shot score, both of shape `(num_views,)`.
    """
    size, overlap = bank.options.tile_size, bank.options.tile_overlap
    boxes = tile_boxes(image.height, image.width, size, overlap) if size else []
    views = [image.crop(box) for box in boxes] or [image]
    distances, logits = zip(*_view_batches(detector, bank, views))
    return torch.cat(distances), torch.cat(logits)


def _view_batches(
    detector: AnomalyDetectionPipeline, bank: ReferenceBank, views: Sequence[Image.Image]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    model, top_k = detector.model, detector.score_settings()["top_k"]
    with torch.inference_mode():
        for start in range(0, len(views), TILES_AT_ONCE):
            batch = list(views[start : start + TILES_AT_ONCE])
            pixel_values = detector.image_processor(batch, return_tensors="pt")["pixel_values"].to(model.device)
            outputs = model(pixel_values=pixel_values, top_k=top_k, references=bank)
            yield outputs.reference_scores.cpu(), (outputs.logits[:, 1] - outputs.logits[:, 0]).float().cpu()


__all__ = ["build", "rebuilt", "view_evidence"]
