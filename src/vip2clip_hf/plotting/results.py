"""Figure of the result of one image."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..utils.figures import new_figure
from .canvas import MASK_COLOR, TRUTH_COLOR, PhotoCanvas, color_bar, panel


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def result_figure(
    image: Any,
    result: dict[str, Any],
    ground_truth: Any = None,
    title: str | None = None,
    *,
    pixel_threshold: float | None = None,
    mask_threshold: int | float | None = None,
    mask_options: MaskOptions | None = None,
) -> "Figure":
    """
    Draw the result of one image: the image, the ground truth (if set), and the anomaly map over the image.

    The map has the fixed scale from 0 to 1 and shows the outlines of mask and ground truth. The title shows score,
    label and p-value.

    Images with more than 1024 pixels per side are drawn smaller. Maps and masks are then shrunk by taking the maximum,
    which keeps small regions visible.

    Args:
        image:
            One image, in any form that the pipeline accepts.
        result (`dict`):
            Output of the pipeline or of `post_process_anomaly_detection` for this image, at the size of the image.
        ground_truth (*optional*):
            The true mask at the size of the image: a file, PIL image or array, see [`load_mask`].
        title (`str`, *optional*):
            Line above score and label.
        pixel_threshold (`float`, *optional*):
            Threshold of the mask, in [0, 1], to mark in the colour bar: `detector.model.decision.pixel_threshold`, or
            the value passed to the pipeline.
        mask_threshold (`int` or `float`, *optional*, defaults to 0):
            Values of the ground truth greater than this are anomalous. Use 127 for masks in a lossy format (JPEG).
        mask_options ([`MaskOptions`], *optional*):
            How to read the ground truth.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it to a file.

    Raises:
        ValueError: if `result` is not the result of one image, `pixel_threshold` is outside [0, 1], or a map, mask or
            ground truth differs in size from the image.
        OSError: if an image cannot be read.
        ImportError: if matplotlib is not installed.
    """
    photo = load_image(image)
    shown = PhotoCanvas(photo)
    anomaly_map, mask = check_result(result, photo)
    if pixel_threshold is not None and not 0 <= pixel_threshold <= 1:
        raise ValueError(f"pixel_threshold is {pixel_threshold!r}; expected a number in [0, 1].")
    outlines: list[tuple[str, np.ndarray, str, Literal["solid", "dashed"]]] = [("mask", mask, MASK_COLOR, "solid")]
    if ground_truth is not None:
        options = MaskOptions(threshold=mask_threshold).over(mask_options or MaskOptions())
        truth = marked_pixels(ground_truth, options, image, "ground_truth")
        check_size("ground_truth", truth, photo)
        outlines.append(("ground truth", truth, TRUTH_COLOR, "dashed"))

    width, height = panel(photo, 3.4)
    panels = 1 + len(outlines)
    figure = new_figure(panels * (width + 0.1) + 0.7, height + 1.0)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    shown.draw(axes[0], "photo")
    if ground_truth is not None:
        shown.draw_mask(axes[1], truth, "ground truth")
    drawn = shown.draw_map(axes[-1], anomaly_map, f"anomaly map, {anomaly_map.min():.3f} to {anomaly_map.max():.3f}")
    handles = [
        shown.outline(axes[-1], where, color, style, name if where.any() else f"{name} (empty)")
        for name, where, color, style in outlines
    ]
    bar = color_bar(figure, axes[-1], drawn, width)
    if pixel_threshold is not None:
        bar.ax.axhline(pixel_threshold, color=MASK_COLOR, linewidth=1.5)
        handles[0].set_label(f"{handles[0].get_label()}, threshold {pixel_threshold:.3f}")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7, frameon=False)
    figure.suptitle("\n".join(line for line in (title, summary(result)) if line), fontsize=9, parse_math=False)
    return figure


def check_result(result: Any, photo: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Check a result and return its map and mask."""
    needed = ("score", "label", "anomaly_map", "mask")
    if not isinstance(result, dict) or any(name not in result for name in needed):
        found = f"a dict with {sorted(result)}" if isinstance(result, dict) else f"a {type(result).__name__}"
        raise ValueError(f"result is {found}; expected a dict with {', '.join(needed)}, the result of one image.")
    anomaly_map, mask = (torch.as_tensor(result[name]).cpu().numpy() for name in ("anomaly_map", "mask"))
    for name, values in (("anomaly_map", anomaly_map), ("mask", mask)):
        check_size(name, values, photo)
    return anomaly_map, mask.astype(bool)


def check_size(name: str, values: np.ndarray, photo: Image.Image) -> None:
    """Check that a map or mask has the size of its photo."""
    if values.shape != (photo.height, photo.width):
        raise ValueError(
            f"{name} has shape {values.shape}; expected {(photo.height, photo.width)}, the height and width of the "
            "image."
        )


def summary(result: dict[str, Any]) -> str:
    """Describe score, label and p-value in one line."""
    score, *p_value = score_parts(result)
    return ", ".join([score, str(result["label"]), *p_value])


def score_parts(result: dict[str, Any]) -> list[str]:
    """Describe the score and, if it is known, the p-value."""
    parts = [f"score {result['score']:.3f}"]
    if result.get("p_value") is not None:
        parts.append(f"p-value {result['p_value']:.3g}")
    return parts


__all__ = ["check_result", "check_size", "result_figure", "score_parts", "summary"]
