"""Figures of what the model looked at: attention of the prompts, and the map of every feature layer."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.maps_vip2clip import resize_maps
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.figures import new_figure
from .canvas import LEAST_WIDTH, PhotoCanvas, color_bar, panel


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Attention of so many times its even share has the strongest colour where none is higher.
LEAST_CONTRAST = 1.1
PROMPTS = ("normal", "anomalous")


def attention_maps(detector: AnomalyDetectionPipeline, image: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """
    Where the two prompts look (eq. 6, the paper's Fig. 3): attention of the fine-grained perception over the patches,
    the mean of its heads, in multiples of uniform attention: 1 where a patch gets its even share.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Where it sees photos in tiles, these are left out: shown is what it sees of the photo as a whole.
        image:
            One image, as for the pipeline.
        size (`tuple[int, int]`, *optional*):
            Height and width of the maps; those of the photo when not given.

    Returns:
        `np.ndarray` of shape `(num_layers, 2, height, width)`: float32, at least 0, the layers in the order of
        `config.feature_layers`, prompts [normal, anomalous].

    Raises:
        ValueError: a model without fine-grained perception, or something else than a pipeline.
        OSError: an image that cannot be read.
    """
    _check_detector(detector)
    _check_attention(detector)
    photo = load_image(image)
    attentions = _outputs(detector, photo, output_attentions=True).attentions
    mean = torch.stack([layer[0].float().mean(dim=0) for layer in attentions])  # (L, 2, P)
    grid = int(mean.shape[-1] ** 0.5)
    relative = (mean * mean.shape[-1]).unflatten(-1, (grid, grid))
    return resize_maps(relative, size or (photo.height, photo.width)).cpu().numpy()


def layer_anomaly_maps(
    detector: AnomalyDetectionPipeline, image: Any, size: tuple[int, int] | None = None
) -> np.ndarray:
    """
    The anomaly map of every feature layer by itself (the paper's Fig. 7), upsampled and smoothed as in eq. 11. Their
    mean is the anomaly map of the result.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Where it sees photos in tiles, these are left out: shown is what it sees of the photo as a whole, and the
            mean is not the map of its result.
        image:
            One image, as for the pipeline.
        size (`tuple[int, int]`, *optional*):
            Height and width of the maps; those of the photo when not given.

    Returns:
        `np.ndarray` of shape `(num_layers, height, width)`: float32 in [0, 1], the layers in the order of
        `config.feature_layers`.

    Raises:
        ValueError: something else than a pipeline.
        OSError: an image that cannot be read.
    """
    _check_detector(detector)
    photo = load_image(image)
    layer_maps = _outputs(detector, photo).layer_maps  # (1, L, 2, grid, grid)
    maps = detector.model.get_anomaly_maps(layer_maps[0][:, None])  # every layer as an image of one layer
    return resize_maps(maps.float(), size or (photo.height, photo.width)).clamp(0, 1).cpu().numpy()


def attention_figure(detector: AnomalyDetectionPipeline, image: Any) -> "Figure":
    """
    Where the normal and the anomalous prompt look at every feature layer (the paper's Fig. 3), over the photo in grey.

    Attention has no fixed range: every panel has a scale of its own, in multiples of uniform attention, and a colour
    bar that says so. It starts at 1, so that the photo shows where a patch gets its even share or less, and ends at
    the largest value, at 1.1 at least: attention that is all but uniform is not made to look like more. The data are
    those of [`attention_maps`].

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Where it sees photos in tiles, shown is what it sees of the photo as a whole; the title says so.
        image:
            One image, as for the pipeline.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: a model without fine-grained perception, or something else than a pipeline.
        OSError: an image that cannot be read.
        ImportError: matplotlib is not installed.
    """
    _check_detector(detector)
    _check_attention(detector)
    photo = load_image(image)
    shown, layers = PhotoCanvas(photo), detector.model.config.feature_layers
    width, height = panel(photo, 2.0)
    figure = new_figure(max(LEAST_WIDTH, (1 + len(layers)) * (width + 0.55)), 2 * (height + 0.35) + 0.65)
    maps = attention_maps(detector, photo, shown.size)
    names = [[f"{prompt} prompt, block {layer}" for layer in layers] for prompt in PROMPTS]
    axes = figure.subplot_mosaic([["photo", *row] for row in names])
    shown.draw(axes["photo"], "photo")
    places = [(prompt, layer) for prompt in range(len(PROMPTS)) for layer in range(len(layers))]
    for prompt, layer in places:
        name, values = names[prompt][layer], maps[layer, prompt]
        high = max(float(values.max()), LEAST_CONTRAST)
        drawn = shown.draw_map(axes[name], values, name, (1.0, high), grey=True)
        bar = color_bar(figure, axes[name], drawn, width, ticks=[1, high])
        bar.ax.set_yticklabels(["1×", f"{high:.3g}×"])
    patches = (detector.model.config.image_size // detector.model.config.clip_config.vision_config.patch_size) ** 2
    title = (
        "Attention of the prompts, in multiples of uniform attention\n"
        f"(1/{patches} a patch; every panel has a scale of its own)"
    )
    figure.suptitle(title + _about_tiles(detector, photo), fontsize=9)
    return figure


def layers_figure(detector: AnomalyDetectionPipeline, image: Any) -> "Figure":
    """
    The anomaly map of every feature layer and their mean (the paper's Fig. 7), over the photo, all on the fixed scale
    from 0 to 1. The data are those of [`layer_anomaly_maps`].

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Where it sees photos in tiles, shown is what it sees of the photo as a whole; the title says so.
        image:
            One image, as for the pipeline.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: something else than a pipeline.
        OSError: an image that cannot be read.
        ImportError: matplotlib is not installed.
    """
    _check_detector(detector)
    photo = load_image(image)
    shown, layers = PhotoCanvas(photo), detector.model.config.feature_layers
    width, height = panel(photo, 2.0)
    figure = new_figure(max(LEAST_WIDTH, (2 + len(layers)) * (width + 0.1) + 0.5), height + 0.6)
    maps = layer_anomaly_maps(detector, photo, shown.size)
    axes = figure.subplots(1, 2 + len(layers))
    shown.draw(axes[0], "photo")
    names = [*(f"block {layer}" for layer in layers), "mean"]
    for axis, values, name in zip(axes[1:], (*maps, maps.mean(axis=0)), names):
        drawn = shown.draw_map(axis, values, f"{name}, {values.min():.3f} to {values.max():.3f}")
    color_bar(figure, axes[-1], drawn, width)
    figure.suptitle("Anomaly map of every feature layer, and their mean" + _about_tiles(detector, photo), fontsize=9)
    return figure


# The model


def _outputs(detector: AnomalyDetectionPipeline, photo: Image.Image, output_attentions: bool = False) -> Any:
    pixel_values = detector.image_processor(photo, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return detector.model(pixel_values.to(detector.model.device), output_attentions=output_attentions)


def _about_tiles(detector: AnomalyDetectionPipeline, photo: Image.Image) -> str:
    """What a title says where the result comes from tiles and the figure does not."""
    side = detector.score_settings()["tile_size"]
    if side and max(photo.size) > side:
        return f"\nof the photo as a whole, not of the tiles of {side} pixels that decide"
    return ""


# Checks


def _check_detector(detector: Any):
    if not (hasattr(detector, "model") and hasattr(detector, "image_processor")):
        raise ValueError(
            f"Expected an AnomalyDetectionPipeline, found {type(detector).__name__}; make one with "
            "AnomalyDetectionPipeline.from_pretrained, or from model= and image_processor=."
        )


def _check_attention(detector: AnomalyDetectionPipeline):
    if not detector.model.config.use_fine_grained_perception:
        raise ValueError(
            "The model has use_fine_grained_perception=False: its prompts do not attend to the patches. "
            "layers_figure shows what every layer finds."
        )


__all__ = ["attention_figure", "attention_maps", "layer_anomaly_maps", "layers_figure"]
