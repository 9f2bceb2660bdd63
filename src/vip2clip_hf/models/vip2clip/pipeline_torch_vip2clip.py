"""Parts of the pipeline that need torch: the model on images, and rows of other libraries as a dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from .pipeline_inputs_vip2clip import Rows
from .pipeline_steps_vip2clip import warn_about_references


class TorchRows(Rows, torch.utils.data.Dataset):
    """Rows of another library as a dataset of torch, which the base class of the pipeline can handle."""


def run_on_images(
    model: Any, image_processor: Any, options: Mapping[str, Any], images: list[Image.Image]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Compute scores and maps of images.

    Args:
        model, image_processor: model and image processor.
        options (`Mapping[str, Any]`): arguments of the model.
        images (`list[PIL.Image.Image]`): the images, in mode RGB.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: scores of shape `(batch_size,)` and maps of shape `(batch_size, image_size,
        image_size)`, both float32.
    """
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    outputs = model(pixel_values=pixel_values.to(model.device), **options)
    warn_about_references(outputs)
    scores, maps = (outputs[name].float().cpu().numpy() for name in ("scores", "anomaly_maps"))
    return scores, maps


__all__ = ["TorchRows", "run_on_images"]
