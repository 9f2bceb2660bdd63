"""Steps of the pipeline: tiles, references, and the settings that scores depend on."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .arguments_vip2clip import READING_ARGUMENTS
from .decision_config_vip2clip import DecisionConfig
from .fingerprint_vip2clip import is_calibrated
from .logging_vip2clip import get_logger
from .tiling_vip2clip import Box, TileBlender


if TYPE_CHECKING:
    from .reference_bank_vip2clip import ReferenceBank

logger = get_logger(__name__)
# Number of tiles in a batch.
TILES_AT_ONCE = 4
# Distance to references below which a photo is one of them.
SAME_PHOTO = 1e-4


def check_model_type(found: str | None) -> None:
    """
    Check that a checkpoint belongs to this method.

    Args:
        found (`str`, *optional*): `model_type` of its configuration.

    Raises:
        ValueError: if it does not.
    """
    if found != "vip2clip":
        raise ValueError(f"Expected a checkpoint with model_type 'vip2clip', found model_type {found!r}.")


def bank_of(model: Any, options: Mapping[str, Any]) -> "ReferenceBank | None":
    """
    Return the references that a call uses.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        options (`Mapping[str, Any]`): arguments of the call; `references` is a bank, `None`, `"auto"` or missing.

    Returns:
        [`ReferenceBank`], *optional*: the argument, or the references of the model.
    """
    found: Any = options.get("references", "auto")
    return model.references if isinstance(found, str) else found


def as_bank(
    references: Any, model: Any, image_processor: Any, options: Mapping[str, Any]
) -> "ReferenceBank | str | None":
    """
    Convert the argument `references` of a call.

    Args:
        references ([`ReferenceBank`] or images, *optional*): the argument.
        model, image_processor: model and image processor.
        options (`Mapping[str, Any]`): arguments of the call, with the defaults of the pipeline.

    Returns:
        [`ReferenceBank`], *optional*: the bank. Images are read with the settings of the call.

    Raises:
        OSError: if an image cannot be read.
        ValueError: if there are no images.
    """
    # Compare names, not classes: remote code is loaded as separate copies of the classes.
    if references is None or hasattr(references, "combined_scores") or str(references) == "auto":
        return references
    from .reference_bank_vip2clip import ReferenceBank

    settings = score_settings(model, {**options, "references": None})
    reading = {name: options[name] for name in READING_ARGUMENTS if name in options}
    names = ("tile_size", "tile_overlap", "top_k")
    return ReferenceBank.from_images(
        model, image_processor, references, reading=reading, **{name: settings[name] for name in names}
    )


def with_references(detector: Any, references: "ReferenceBank | str | None") -> Any:
    """
    Return a pipeline with the same model and settings that uses other references.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline; it is not changed.
        references ([`ReferenceBank`], *optional*): the references, `None`, or `"auto"` for those of the pipeline.

    Returns:
        [`AnomalyDetectionPipeline`]: the pipeline.
    """
    if isinstance(references, str):
        return detector
    found = copy.copy(detector)
    for name in ("_forward_params", "_postprocess_params"):
        setattr(found, name, {**getattr(detector, name), "references": references})
    return found


def zero_shot_settings(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the settings that zero-shot scores depend on: the arguments if set, else those of the checkpoint.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        options (`Mapping[str, Any]`): arguments of a call: `tile_size`, `tile_overlap` and `top_k`.

    Returns:
        `dict[str, Any]`: `tile_size` (0 without tiling), `tile_overlap` and `top_k`.
    """
    decision, found = model.decision, {}
    for name in ("tile_size", "tile_overlap", "top_k"):
        found[name] = getattr(decision, name) if options.get(name) is None else options[name]
    found["tile_overlap"] = found["tile_overlap"] if found["tile_size"] else 0.25
    found["top_k"] = model.config.top_k if found["top_k"] is None else found["top_k"]
    return found


def score_settings(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the settings that scores depend on: the arguments if set, else those of the checkpoint.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        options (`Mapping[str, Any]`): arguments of a call: `tile_size`, `tile_overlap`, `top_k` and `references`.

    Returns:
        `dict[str, Any]`: `tile_size` (0 without tiling), `tile_overlap`, `top_k`, and with references
        `references` (checksum).

    Raises:
        ValueError: if the references were read with other tiles.
    """
    found = zero_shot_settings(model, options)
    bank = bank_of(model, options)
    if bank is not None:
        expected = {"tile_size": bank.options.tile_size, "tile_overlap": bank.options.tile_overlap}
        given = {name: found[name] for name in expected}
        if given != expected:
            raise ValueError(
                f"The references were read with {_named(expected)}, but photos are read with {_named(given)}; "
                "expected the same. Build the references again, or change the setting."
            )
    return found if bank is None else {**found, "references": bank.checksum()}


def decision_of(model: Any, options: Mapping[str, Any]) -> tuple[DecisionConfig, bool]:
    """
    Return the settings of decisions for a call. Thresholds of zero-shot scores do not apply to combined scores.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        options (`Mapping[str, Any]`): arguments of the call.

    Returns:
        `tuple[DecisionConfig, bool]`: the decision, and whether its calibration belongs to the scores. The thresholds
        are those of `model.decision` if they belong to the references of the call: those of the calibration, or those
        of the checkpoint if it is not calibrated. Otherwise they are 0.5. Without a calibration for two or more
        references, p-values are computed from the scores of the left-out references.
    """
    decision, bank, settings = model.decision, bank_of(model, options), score_settings(model, options)
    used, found = settings.get("references"), decision.calibration
    if found is not None:
        expected = (found.get("settings") or {}).get("references")
    else:
        expected = None if model.references is None else model.references.checksum()
    if used != expected:
        if bank is None or len(bank) < 2:
            is_calibrated(model, settings)  # says what differs
        elif found is not None or (decision.image_threshold, decision.pixel_threshold) != (0.5, 0.5):
            logger.warning_once(
                "The thresholds of the checkpoint were chosen for other references or for none, so they are 0.5 for "
                "these references. p_value is relative to the scores of the references, each compared with the others."
            )
        decision = replace(decision, image_threshold=0.5, pixel_threshold=0.5)
    if bank is not None and len(bank) > 1 and (found is None or used != expected):
        scores = bank.left_out_scores()
        found = {
            "method": "left-out",
            "num_images": len(scores),
            "settings": settings,
            "fingerprint": bank.fingerprint,
        }
        decision = replace(decision, calibration=found, image_scores=scores, pixel_scores=None)
    return decision, is_calibrated(model, settings, decision)


def _named(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in settings.items())


def forward_tiles(
    run: Callable[[list[Image.Image]], tuple[np.ndarray, np.ndarray]], image: Image.Image, boxes: list[Box]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Compute score and map of an image from its tiles.

    Args:
        run (`Callable`): function from images to their scores of shape `(batch_size,)` and maps of shape
            `(batch_size, image_size, image_size)`, both float32.
        image (`PIL.Image.Image`): the image, in mode RGB.
        boxes (`list[tuple[int, int, int, int]]`): its tiles.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: score of shape `()`, the maximum over the tiles, and map of shape
        `(height, width)`, blended from the maps of the tiles, both float32.
    """
    blender, scores = TileBlender(image.height, image.width, boxes), []
    for start in range(0, len(boxes), TILES_AT_ONCE):
        batch = boxes[start : start + TILES_AT_ONCE]
        found, maps = run([image.crop(box) for box in batch])
        scores.append(found)
        for box, anomaly_map in zip(batch, maps):
            blender.add(box, anomaly_map)
    return np.concatenate(scores).max(), blender.result()


def warn_about_references(outputs: Any) -> None:
    """
    Say once that a photo is one of the references: its score says nothing about other good parts.

    Args:
        outputs ([`ViP2ClipAnomalyDetectionOutput`], *optional*): outputs of the model.
    """
    found = None if outputs is None else outputs.get("reference_scores")
    if found is not None and bool((found < SAME_PHOTO).any()):
        logger.warning_once(
            "A photo is one of the references, or the same as one. Its score is lower than that of other photos of "
            "good parts; do not choose thresholds or measure false alarms with it."
        )


__all__ = [
    "as_bank",
    "bank_of",
    "check_model_type",
    "decision_of",
    "forward_tiles",
    "score_settings",
    "warn_about_references",
    "with_references",
    "zero_shot_settings",
]
