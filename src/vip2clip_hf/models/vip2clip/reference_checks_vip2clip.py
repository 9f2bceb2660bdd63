"""Checks of banks of references: the model they belong to, and their tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from .fingerprint_vip2clip import calibration_differences


logger = logging.get_logger(__name__)


def check_fingerprint(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """
    Check that features of two models can be compared. Another dtype is allowed, with a warning.

    Args:
        expected, found (`Mapping[str, Any]`): results of [`model_fingerprint`]: of the bank, and of the model.

    Raises:
        ValueError: if weights, image size or another field that features depend on differ.
    """
    compared = {**expected, "dtype": found["dtype"]}
    if found["dtype"] != expected["dtype"]:
        compared["backbone"] = None  # rounding changes the weights of CLIP; the adapters are in float32
    differences = calibration_differences({"fingerprint": compared}, found, {})
    if differences:
        raise ValueError(
            f"The references belong to another model: {', '.join(differences)} differ. Build them again from the "
            "photos, with ReferenceBank.from_images."
        )
    if found["dtype"] != expected["dtype"]:
        logger.warning_once(
            f"The references were computed in {expected['dtype']}, the model is in {found['dtype']}; scores differ "
            "slightly."
        )


def check_tensors(tensors: Mapping[str, torch.Tensor], num_photos: int) -> None:
    """
    Check that the tensors of a bank fit together.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): the tensors, see [`ReferenceBank`].
        num_photos (`int`): number of photos.

    Raises:
        ValueError: if a shape or an index is wrong, or a value is not finite.
    """
    features, maps, views = tensors["features"], tensors["view_maps"], len(tensors["view_photo"])
    rows = features.shape[1] if features.ndim == 3 else 0
    grid = maps.shape[-1] if maps.ndim == 3 else 0
    shapes: dict[str, tuple[int, ...]] = {"row_photo": (rows,), "view_photo": (views,), "view_logits": (views,)}
    shapes.update(dict.fromkeys(("view_maps", "view_distances"), (views, grid, grid)))
    wrong = [name for name, shape in shapes.items() if tuple(tensors[name].shape) != shape]
    if not (num_photos and views and rows and grid) or wrong:
        raise ValueError(f"the references are incomplete ({', '.join(wrong) or 'no photos'})")
    for name in ("row_photo", "view_photo"):
        if int(tensors[name].min()) < 0 or int(tensors[name].max()) >= num_photos:
            raise ValueError(f"{name} refers to photos that do not exist")
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("the features of the references contain NaN or infinite values")


__all__ = ["check_fingerprint", "check_tensors"]
