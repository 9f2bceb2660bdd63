"""Scores and anomaly maps of calibration images."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from transformers.utils import logging

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.reference_records_vip2clip import photo_hash


logger = logging.get_logger(__name__)


def decision_maps(
    detector: AnomalyDetectionPipeline, images: Iterable[Any], unreadable: dict[str, str], progress: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Compute the score and the anomaly map of each image. Images that cannot be read are skipped. So are photos that are
    among the references, with a warning: their scores are lower than those of other photos of good parts.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline.
        images (`Iterable`): images in any form that the pipeline accepts.
        unreadable (`dict[str, str]`): gets the name of each image that cannot be read, and the reason.
        progress (`bool`): whether to show a progress bar.

    Yields:
        `tuple[str, dict[str, Any]]`: name of the image, and the result of `detector.decision_map`. The map has the
        size of the model, or of the image if it is split into tiles.
    """
    from tqdm.auto import tqdm

    detector.score_settings()  # an error of settings is not one of an image
    bank = detector.references
    known = set() if bank is None else {photo.sha256 for photo in bank.photos}
    left_out: list[str] = []
    for number, image in enumerate(tqdm(images, desc="calibrating", disable=not progress)):
        path = image.get("path") if isinstance(image, dict) else image
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else f"image {number}"
        try:
            loaded = detector.load(image)
        except (OSError, ValueError) as error:
            unreadable[name] = str(error)
            continue
        if known and photo_hash(loaded) in known:
            left_out.append(name)
            continue
        yield name, detector.decision_map(loaded)
    if left_out:
        logger.warning(
            f"{len(left_out)} images are among the references and are left out of the calibration: "
            f"{', '.join(left_out[:10])}{', ...' if len(left_out) > 10 else ''}."
        )


def decision_settings(detector: AnomalyDetectionPipeline) -> dict[str, Any]:
    """
    Return the tiles and top-k of a pipeline as fields of a [`DecisionConfig`].

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline.

    Returns:
        `dict[str, Any]`: `tile_size`, `tile_overlap` and `top_k`. `top_k` is `None` if it is that of the
        configuration.
    """
    settings = {name: value for name, value in detector.score_settings().items() if name != "references"}
    return {**settings, "top_k": None if settings["top_k"] == detector.model.config.top_k else settings["top_k"]}


__all__ = ["decision_maps", "decision_settings"]
