"""Figures of the prompts' attention and of the anomaly map of each feature layer."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image

from ..models.vip2clip.maps_vip2clip import resize_maps
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.figures import new_figure
from .canvas import MIN_WIDTH, PhotoCanvas, color_bar, panel


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Smallest upper end of an attention scale, so that nearly uniform attention does not look like a strong contrast.
MIN_CONTRAST = 1.1
PROMPTS = ("normal", "anomalous")


def attention_maps(detector: AnomalyDetectionPipeline, image: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """
    Compute the attention of the two prompts over the patches (eq. 6 and Fig. 3 of the paper).

    This is the attention of the fine-grained perception, averaged over its heads, in multiples of uniform attention:
    the value is 1 for a patch that gets an equal share.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            The pipeline. Its tile settings are ignored: the model gets the whole image.
        image:
            One image, in any form that the pipeline accepts.
        size (`tuple[int, int]`, *optional*):
            Height and width of the maps; defaults to those of the image.

    Returns:
        `np.ndarray` of shape `(num_layers, 2, height, width)`: float32, at least 0. Layers are in the order of
        `config.feature_layers`, prompts in the order [normal, anomalous].

    Raises:
        ValueError: if `detector` is not a pipeline, or its model has no fine-grained perception.
        OSError: if the image cannot be read.
    """
    check_detector(detector)
    check_attention(detector)
    photo = detector.load(image)
    attentions = _outputs(detector, photo, output_attentions=True).cross_attentions
    mean = torch.stack([layer[0].float().mean(dim=0) for layer in attentions])  # (L, 2, P)
    grid = int(mean.shape[-1] ** 0.5)
    relative = (mean * mean.shape[-1]).unflatten(-1, (grid, grid))
    return resize_maps(relative, size or (photo.height, photo.width)).cpu().numpy()


def layer_anomaly_maps(
    detector: AnomalyDetectionPipeline, image: Any, size: tuple[int, int] | None = None
) -> np.ndarray:
    """
    Compute the anomaly map of each feature layer (Fig. 7 of the paper), upsampled and smoothed as in eq. 11.

    The mean over the layers is the anomaly map of the pipeline, unless the pipeline splits the image into tiles.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            The pipeline. Its tile settings are ignored: the model gets the whole image.
        image:
            One image, in any form that the pipeline accepts.
        size (`tuple[int, int]`, *optional*):
            Height and width of the maps; defaults to those of the image.

    Returns:
        `np.ndarray` of shape `(num_layers, height, width)`: float32 in [0, 1]. Layers are in the order of
        `config.feature_layers`.

    Raises:
        ValueError: if `detector` is not a pipeline.
        OSError: if the image cannot be read.
    """
    check_detector(detector)
    photo = detector.load(image)
    layer_maps = _outputs(detector, photo).layer_maps  # (1, L, 2, grid, grid)
    model = cast(ViP2ClipForAnomalyDetection, detector.model)
    maps = model.get_anomaly_maps(layer_maps[0][:, None])  # each layer as a batch item
    return resize_maps(maps.float(), size or (photo.height, photo.width)).clamp(0, 1).cpu().numpy()


def attention_figure(detector: AnomalyDetectionPipeline, image: Any) -> "Figure":
    """
    Draw the attention of both prompts at each feature layer (Fig. 3 of the paper) over the image in grey.

    Each panel has its own scale in multiples of uniform attention, shown in its colour bar. The scale starts at 1:
    patches with an equal share of attention or less show the image. It ends at the largest value of the panel, but at
    1.1 or more, so that nearly uniform attention does not look like a strong contrast. [`attention_maps`] returns the
    data.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            The pipeline. The model gets the whole image; if the pipeline splits the image into tiles, the title adds a
            note.
        image:
            One image, in any form that the pipeline accepts.

    Returns:
        `matplotlib.figure.Figure`: the figure.

    Raises:
        ValueError: if `detector` is not a pipeline, or its model has no fine-grained perception.
        OSError: if the image cannot be read.
        ImportError: if matplotlib is not installed.
    """
    check_detector(detector)
    check_attention(detector)
    photo = detector.load(image)
    shown, layers = PhotoCanvas(photo), detector.model.config.feature_layers
    width, height = panel(photo, 2.0)
    figure = new_figure(max(MIN_WIDTH, (1 + len(layers)) * (width + 0.55)), 2 * (height + 0.35) + 0.65)
    maps = attention_maps(detector, photo, shown.size)
    names = [[f"{prompt} prompt, block {layer}" for layer in layers] for prompt in PROMPTS]
    axes = figure.subplot_mosaic([["photo", *row] for row in names])
    shown.draw(axes["photo"], "photo")
    places = [(prompt, layer) for prompt in range(len(PROMPTS)) for layer in range(len(layers))]
    for prompt, layer in places:
        name, values = names[prompt][layer], maps[layer, prompt]
        low, high = attention_range(values)
        drawn = shown.draw_map(axes[name], values, name, (low, high), grey=True)
        bar = color_bar(figure, axes[name], drawn, width, ticks=[low, high])
        bar.ax.set_yticklabels(["1×", f"{high:.3g}×"])
    patches = (detector.model.config.image_size // detector.model.config.clip_config.vision_config.patch_size) ** 2
    title = (
        "Attention of the prompts, in multiples of uniform attention\n"
        f"(1/{patches} per patch; each panel has its own scale)"
    )
    figure.suptitle(title + tile_note(detector, photo), fontsize=9, parse_math=False)
    return figure


def attention_range(values: np.ndarray) -> tuple[float, float]:
    """
    Choose the colour scale of an attention map.

    Args:
        values (`np.ndarray`): attention in multiples of uniform attention.

    Returns:
        `tuple[float, float]`: 1, and the largest value, at least 1.1. Nearly uniform attention does not look like a
        strong contrast.
    """
    return 1.0, max(float(values.max()), MIN_CONTRAST)


def layers_figure(detector: AnomalyDetectionPipeline, image: Any) -> "Figure":
    """
    Draw the anomaly map of each feature layer and their mean (Fig. 7 of the paper) over the image.

    All panels have the fixed scale from 0 to 1. [`layer_anomaly_maps`] returns the data.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            The pipeline. The model gets the whole image; if the pipeline splits the image into tiles, the title adds a
            note.
        image:
            One image, in any form that the pipeline accepts.

    Returns:
        `matplotlib.figure.Figure`: the figure.

    Raises:
        ValueError: if `detector` is not a pipeline.
        OSError: if the image cannot be read.
        ImportError: if matplotlib is not installed.
    """
    check_detector(detector)
    photo = detector.load(image)
    shown, layers = PhotoCanvas(photo), detector.model.config.feature_layers
    width, height = panel(photo, 2.0)
    figure = new_figure(max(MIN_WIDTH, (2 + len(layers)) * (width + 0.1) + 0.5), height + 0.6)
    maps = layer_anomaly_maps(detector, photo, shown.size)
    axes = figure.subplots(1, 2 + len(layers))
    shown.draw(axes[0], "photo")
    names = [*(f"block {layer}" for layer in layers), "mean"]
    for axis, values, name in zip(axes[1:], (*maps, maps.mean(axis=0)), names):
        drawn = shown.draw_map(axis, values, f"{name}, {values.min():.3f} to {values.max():.3f}")
    color_bar(figure, axes[-1], drawn, width)
    figure.suptitle("Anomaly map of each feature layer, and their mean" + tile_note(detector, photo), fontsize=9)
    return figure


# The model


def _outputs(detector: AnomalyDetectionPipeline, photo: Image.Image, output_attentions: bool = False) -> Any:
    """Run the model on the whole photo."""
    pixel_values = detector.image_processor(photo, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return detector.model(pixel_values.to(detector.model.device), output_attentions=output_attentions)


def tile_note(detector: AnomalyDetectionPipeline, *photos: Image.Image) -> str:
    """
    Explain that a figure shows the result for the whole photo, if the pipeline splits it into tiles.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline.
        photos (`PIL.Image.Image`): the photos of the figure.

    Returns:
        `str`: a line for the end of the title, or an empty string if no photo is split.
    """
    side = detector.score_settings()["tile_size"]
    if side and any(max(photo.size) > side for photo in photos):
        return f"\n(whole photo; the result uses tiles of {side} pixels)"
    return ""


# Checks


def check_detector(detector: Any) -> None:
    """Check that a detector is a pipeline."""
    if not (hasattr(detector, "model") and hasattr(detector, "image_processor")):
        raise ValueError(
            f"detector is a {type(detector).__name__}; expected an AnomalyDetectionPipeline. Create one with "
            "AnomalyDetectionPipeline.from_pretrained(checkpoint), or from a model and an image processor."
        )


def check_attention(detector: AnomalyDetectionPipeline) -> None:
    """Check that the model of a pipeline has fine-grained perception."""
    if not detector.model.config.use_fine_grained_perception:
        raise ValueError(
            "use_fine_grained_perception is False; expected a model whose prompts attend to the patches. "
            "layers_figure works with this model."
        )


__all__ = [
    "PROMPTS",
    "attention_figure",
    "attention_maps",
    "attention_range",
    "check_attention",
    "check_detector",
    "layer_anomaly_maps",
    "layers_figure",
    "tile_note",
]
