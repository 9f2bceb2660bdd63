"""Parts of the pipeline that need torch: the model on images, and rows of other libraries as a dataset."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from .pipeline_inputs_vip2clip import Rows
from .pipeline_steps_vip2clip import forward_tiles, warn_about_references


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


def combine_tiles(
    model: Any, image_processor: Any, options: Mapping[str, Any], outputs: Any, tiles: Sequence[Any]
) -> dict[str, Any]:
    """
    Compute the results of images of which some are split into tiles.

    Args:
        model, image_processor: model and image processor.
        options (`Mapping[str, Any]`): arguments of the model.
        outputs ([`ViP2ClipAnomalyDetectionOutput`], *optional*): outputs of the model for the other images.
        tiles (`Sequence[tuple]`): of each image, the image and its tiles, or `None` if it is not split.

    Returns:
        `dict`: `scores` of shape `(batch_size,)`, and `anomaly_maps`, a list, because they can differ in size.
    """
    whole = [] if outputs is None else list(zip(outputs["scores"].cpu(), outputs["anomaly_maps"].cpu()))
    run, scores, maps = partial(run_on_images, model, image_processor, options), [], []
    for image_and_boxes in tiles:
        if image_and_boxes:
            found = forward_tiles(run, *image_and_boxes)
            score, anomaly_map = (torch.from_numpy(np.asarray(part)) for part in found)
        else:
            score, anomaly_map = whole.pop(0)
        scores.append(score)
        maps.append(anomaly_map)
    return {"scores": torch.stack(scores), "anomaly_maps": maps}


__all__ = ["TorchRows", "combine_tiles", "run_on_images"]
