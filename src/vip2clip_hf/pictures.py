"""Pictures of results and of what the model looked at, as matplotlib figures and PNG files. No display is needed.

Colours are those of the heatmap (`draw_heatmap`), on the same fixed scale wherever there is one.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from .files import write_atomically
from .image_processing_vip2clip import load_image, load_mask
from .maps_vip2clip import resize_maps
from .pipeline_anomaly_detection import HEATMAP_COLORS, HEATMAP_OPACITY, AnomalyDetectionPipeline


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D


# Photos and maps are drawn with at most so many pixels a side: of 100 megapixels no figure shows more.
MAX_SIDE = 1024
# Attention of so many times its even share has the strongest colour where none is higher.
LEAST_CONTRAST = 1.1
# Inches that a title needs.
LEAST_WIDTH = 4.8
PROMPTS = ("normal", "anomalous")
# Neither stands in the heatmap. The ground truth is dashed as well, for those who cannot tell them apart.
MASK_COLOR = "#0050ff"
TRUTH_COLOR = "#00963c"


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


def result_figure(
    image: Any,
    result: dict[str, Any],
    ground_truth: Any = None,
    title: str | None = None,
    *,
    pixel_threshold: float | None = None,
    mask_threshold: int | float = 0,
) -> "Figure":
    """
    A result: the photo, the ground truth where it is given, and the photo with the map over it on the fixed scale from
    0 to 1, with the outlines of mask and ground truth. Score, label and p-value stand above.

    Photos with more than `MAX_SIDE` pixels a side are drawn smaller; of the map and the masks the largest value under
    every pixel then counts, so that a small region does not vanish.

    Args:
        image:
            The photo, as for the pipeline.
        result (`dict`):
            What the pipeline or `post_process_anomaly_detection` gave for it, at the size of the photo.
        ground_truth (*optional*):
            The true mask, of the size of the photo: a file, PIL image or array, see `load_mask`.
        title (`str`, *optional*):
            A line above score and label.
        pixel_threshold (`float`, *optional*):
            Marked in the colour bar: `detector.model.config.pixel_threshold`, or what the pipeline was given.
        mask_threshold (`int` or `float`, defaults to 0):
            Values of the ground truth greater than this are anomalous. Lossy masks (JPEG) want 127.

    Returns:
        `matplotlib.figure.Figure`: for [`save_figure`], or to go on with.

    Raises:
        ValueError: a result that is none, or a map, mask or ground truth of another size than the photo.
        OSError: an image that cannot be read.
        ImportError: matplotlib is not installed.
    """
    photo = load_image(image)
    shown = _Shown(photo)
    anomaly_map, mask = _check_result(result, photo)
    if pixel_threshold is not None and not 0 <= pixel_threshold <= 1:
        raise ValueError(f"pixel_threshold is {pixel_threshold!r}; expected a number in [0, 1].")
    outlines = [("mask", mask, MASK_COLOR, "solid")]
    if ground_truth is not None:
        truth = load_mask(ground_truth) > mask_threshold
        _check_size("ground_truth", truth, photo)
        outlines.append(("ground truth", truth, TRUTH_COLOR, "dashed"))

    width, height = _panel(photo, 3.4)
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
    bar = _color_bar(figure, axes[-1], drawn, width)
    if pixel_threshold is not None:
        bar.ax.axhline(pixel_threshold, color=MASK_COLOR, linewidth=1.5)
        handles[0].set_label(f"{handles[0].get_label()}, threshold {pixel_threshold:.3f}")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7, frameon=False)
    figure.suptitle("\n".join(line for line in (title, _summary(result)) if line), fontsize=9)
    return figure


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
    shown, layers = _Shown(photo), detector.model.config.feature_layers
    width, height = _panel(photo, 2.0)
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
        bar = _color_bar(figure, axes[name], drawn, width, ticks=[1, high])
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
    shown, layers = _Shown(photo), detector.model.config.feature_layers
    width, height = _panel(photo, 2.0)
    figure = new_figure(max(LEAST_WIDTH, (2 + len(layers)) * (width + 0.1) + 0.5), height + 0.6)
    maps = layer_anomaly_maps(detector, photo, shown.size)
    axes = figure.subplots(1, 2 + len(layers))
    shown.draw(axes[0], "photo")
    names = [*(f"block {layer}" for layer in layers), "mean"]
    for axis, values, name in zip(axes[1:], (*maps, maps.mean(axis=0)), names):
        drawn = shown.draw_map(axis, values, f"{name}, {values.min():.3f} to {values.max():.3f}")
    _color_bar(figure, axes[-1], drawn, width)
    figure.suptitle("Anomaly map of every feature layer, and their mean" + _about_tiles(detector, photo), fontsize=9)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike) -> Path:
    """
    Write a figure as PNG. The file is there whole or not at all; missing folders are made.

    Args:
        figure (`matplotlib.figure.Figure`).
        path (`str` or `os.PathLike`):
            Ends in `.png`.

    Returns:
        `pathlib.Path`: the file.

    Raises:
        ValueError: a path that does not end in .png.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{str(path)!r} does not end in .png; figures are written as PNG.")
    content = BytesIO()
    figure.savefig(content, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
    return path


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


def _check_result(result: Any, photo: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Map and mask of a result."""
    needed = ("score", "label", "anomaly_map", "mask")
    if not isinstance(result, dict) or any(name not in result for name in needed):
        found = sorted(result) if isinstance(result, dict) else type(result).__name__
        raise ValueError(f"Expected the result of one image, a dict with {', '.join(needed)}, found {found}.")
    anomaly_map, mask = (torch.as_tensor(result[name]).cpu().numpy() for name in ("anomaly_map", "mask"))
    for name, values in (("anomaly_map", anomaly_map), ("mask", mask)):
        _check_size(name, values, photo)
    return anomaly_map, mask.astype(bool)


def _check_size(name: str, values: np.ndarray, photo: Image.Image):
    if values.shape != (photo.height, photo.width):
        raise ValueError(
            f"{name} has shape {values.shape}; expected {(photo.height, photo.width)}, height and width of the image."
        )


# Drawing


def new_figure(width: float, height: float) -> "Figure":
    """
    An empty figure of so many inches that belongs to no window and no global state, as pyplot's do.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Figures and sheets are drawn with matplotlib, which is not installed: pip install 'vip2clip_hf[eval]', "
            "or leave them out."
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def heat_colors() -> "Colormap":
    """The colours of the heatmap as a colour map: 0 lets everything through, 1 covers with dark red."""
    from matplotlib.colors import LinearSegmentedColormap

    opacity = np.linspace(0, HEATMAP_OPACITY, len(HEATMAP_COLORS))
    return LinearSegmentedColormap.from_list("vip2clip_heat", np.column_stack([HEATMAP_COLORS / 255, opacity]), N=256)


def _panel(photo: Image.Image, side: float) -> tuple[float, float]:
    """Inches for a picture whose longer side is to have so many; the shorter gets at least a third of that."""
    scale = side / max(photo.size)
    return max(photo.width * scale, side / 3), max(photo.height * scale, side / 3)


def _shrink(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest of the values under every pixel of a smaller picture; as they are where it is not smaller."""
    for axis, side in enumerate(size):
        if side < values.shape[axis]:
            starts = np.arange(side) * values.shape[axis] // side
            values = np.maximum.reduceat(values, starts, axis=axis)
    return values


class _Shown:
    """A photo at the size it is drawn at, and what is drawn over it. Coordinates of the axes are pixels of the photo,
    whatever that size."""

    def __init__(self, photo: Image.Image):
        scale = min(1.0, MAX_SIDE / max(photo.size))
        self.size = max(1, round(photo.height * scale)), max(1, round(photo.width * scale))  # height, width
        self.extent = (0, photo.width, photo.height, 0)
        # Not thumbnail, which would need a copy of the whole photo.
        self.picture = photo if scale == 1 else photo.resize(self.size[::-1], reducing_gap=2.0)

    def draw(self, axis: "Axes", title: str, grey: bool = False):
        picture = self.picture.convert("L").convert("RGB") if grey else self.picture
        axis.imshow(np.asarray(picture), extent=self.extent)
        _bare(axis, title)

    def draw_mask(self, axis: "Axes", mask: np.ndarray, title: str):
        options = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        axis.imshow(_shrink(mask, self.size), extent=self.extent, **options)
        _bare(axis, title)

    def draw_map(
        self,
        axis: "Axes",
        values: np.ndarray,
        title: str,
        value_range: tuple[float, float] = (0.0, 1.0),
        grey: bool = False,
    ) -> "AxesImage":
        """A map over the photo; values below the range leave it as it is."""
        self.draw(axis, title, grey)
        low, high = value_range
        return axis.imshow(_shrink(values, self.size), cmap=heat_colors(), vmin=low, vmax=high, extent=self.extent)

    def outline(self, axis: "Axes", mask: np.ndarray, color: str, style: str, name: str) -> "Line2D":
        """Draw the outline of a mask; gives what stands for it in a legend."""
        from matplotlib.lines import Line2D
        from matplotlib.patheffects import withStroke

        if mask.any():
            small = np.pad(_shrink(mask, self.size), 1)  # closed where the mask touches the edge
            # Centres of the pixels; those of the padding lie on the edge of the photo.
            y, x = (
                ((np.arange(count + 2) - 0.5) * whole / count).clip(0, whole)
                for count, whole in zip(self.size, mask.shape)
            )
            lines = axis.contour(x, y, small.astype(float), [0.5], colors=[color], linestyles=style, linewidths=1.2)
            lines.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
        return Line2D([], [], color=color, linestyle=style, linewidth=1.2, label=name)


def _bare(axis: "Axes", title: str):
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7)


def _color_bar(figure: "Figure", axis: "Axes", drawn: "AxesImage", width: float, **options) -> "Colorbar":
    """A colour bar as high as the picture it belongs to, which is so many inches wide."""
    bar = figure.colorbar(drawn, cax=axis.inset_axes([1 + 0.05 / width, 0, 0.12 / width, 1]), **options)
    bar.ax.tick_params(labelsize=7)
    return bar


def _summary(result: dict[str, Any]) -> str:
    parts = [f"score {result['score']:.3f}", result["label"]]
    if result.get("p_value") is not None:
        parts.append(f"p-value {result['p_value']:.3g}")
    return ", ".join(parts)


__all__ = [
    "attention_figure",
    "attention_maps",
    "heat_colors",
    "layer_anomaly_maps",
    "layers_figure",
    "new_figure",
    "result_figure",
    "save_figure",
]
