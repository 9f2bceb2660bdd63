"""Pictures of the paper: attention of the prompts (Fig. 3), maps of methods (Fig. 4) and of layers (Fig. 7)."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..plotting.attention import (
    PROMPTS,
    attention_maps,
    attention_range,
    check_attention,
    check_detector,
    layer_anomaly_maps,
    tile_note,
)
from ..plotting.canvas import PhotoCanvas, bare, panel, photo_grid, write_on
from ..utils.text import shown
from .examples import Example


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from ..evaluation.detector import Detector

# Longer side of a panel in inches, and characters per inch of the text below it.
SIDE, CHARACTERS = 1.5, 16
TRUTH = "ground truth"
UNIT = (0.0, 1.0)
# Maps this far outside [0, 1] are rounding errors.
TOLERANCE = 1e-4


def draw_attention(
    detector: AnomalyDetectionPipeline, examples: Sequence[Example], layers: Sequence[int] | None = None
) -> "Figure":
    """
    Draw the attention of both prompts over the patches of several images (Fig. 3 of the paper), one row per image.

    The columns are the image and, for each layer, the attention of the normal and of the anomalous prompt over the
    image in grey. Each panel has its own scale in multiples of uniform attention, from 1 to the value below the panel:
    its largest one, but at least 1.1. [`attention_maps`] returns the data.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            The pipeline. The model gets whole images; if the pipeline splits one into tiles, the title adds a note.
        examples (`Sequence[Example]`):
            The images.
        layers (`Sequence[int]`, *optional*):
            Blocks to show, of `config.feature_layers`. Defaults to all.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`write_figure`] writes it.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no examples, a layer is unknown, `detector` is not a pipeline, or its model has no
            fine-grained perception.
    """
    check_detector(detector)
    check_attention(detector)
    known = list(detector.model.config.feature_layers)
    chosen = known if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"layers is {chosen}; expected some of the feature layers {known}.")
    heads = [f"{prompt} prompt\nblock {layer}" for layer in chosen for prompt in PROMPTS]
    figure, axes = _sheet(examples, ["image", *heads])
    for example, row in zip(examples, axes):
        canvas = _draw_photo(row[0], example)
        maps = attention_maps(detector, example.image, canvas.size)
        values = [maps[known.index(layer), prompt] for layer in chosen for prompt in range(len(PROMPTS))]
        for axis, one in zip(row[1:], values):
            low, high = attention_range(one)
            drawn = canvas.draw_map(axis, one, axis.get_title(), (low, high), grey=True)
            axis.set_xlabel(f"{low:g}× to {high:.3g}×", fontsize=7)
    _add_bar(figure, axes, drawn, ("1× (uniform)", "largest value (below the map)"))
    note = tile_note(detector, *(example.image for example in examples))
    figure.suptitle(f"Attention of the prompts, in multiples of uniform attention{note}", fontsize=9)
    return figure


def draw_layers(detector: AnomalyDetectionPipeline, examples: Sequence[Example]) -> "Figure":
    """
    Draw the anomaly map of each feature layer of several images (Fig. 7 of the paper), one row per image.

    The columns are the image, the ground truth, the map of each layer, and their mean, which is the final map. All
    maps have the fixed scale from 0 to 1, and the range of values is below each map. [`layer_anomaly_maps`] returns
    the data.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            The pipeline. The model gets whole images; if the pipeline splits one into tiles, the title adds a note.
        examples (`Sequence[Example]`):
            The images.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`write_figure`] writes it.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no examples, or `detector` is not a pipeline.
    """
    check_detector(detector)
    heads = [*(f"block {layer}" for layer in detector.model.config.feature_layers), "mean (final map)"]
    figure, axes = _sheet(examples, ["image", TRUTH, *heads])
    for example, row in zip(examples, axes):
        canvas = _draw_photo(row[0], example)
        _draw_truth(row[1], example, canvas)
        maps = layer_anomaly_maps(detector, example.image, canvas.size)
        for axis, values in zip(row[2:], (*maps, maps.mean(axis=0))):
            drawn = _draw_map(axis, canvas, values, UNIT)
    _add_bar(figure, axes, drawn, ("0", "1"))
    note = tile_note(detector, *(example.image for example in examples))
    figure.suptitle(f"Anomaly map of each feature layer, and their mean{note}", fontsize=9)
    return figure


def method_maps(detector: "Detector", examples: Sequence[Example], batch_size: int = 8) -> list[np.ndarray | str]:
    """
    Compute the anomaly maps of a method for a sheet, see [`draw_methods`].

    Args:
        detector ([`Detector`]): the method. If it has a method `for_category`, each category has its own detector.
        examples (`Sequence[Example]`): the images.
        batch_size (`int`, defaults to 8): number of images in a batch.

    Returns:
        `list[np.ndarray | str]`: a float32 map of shape `(image_size, image_size)` for each image. A text instead if
        the method has no maps.

    Raises:
        ValueError: if a map has another shape, or a value is not finite.
    """
    if callable(create := getattr(detector, "for_category", None)):
        groups = [(create(name), list(group)) for name, group in groupby(examples, lambda one: one.category)]
        return [one for own, group in groups for one in _maps_of(own, group, batch_size)]
    return _maps_of(detector, examples, batch_size)


def _maps_of(detector: "Detector", examples: Sequence[Example], batch_size: int) -> list[np.ndarray | str]:
    found: list[np.ndarray | str] = []
    for start in range(0, len(examples), batch_size):
        images = [example.image for example in examples[start : start + batch_size]]
        with torch.inference_mode():
            _, maps = detector.score(detector.prepare(images))
        if maps is None:
            found.extend(["no maps"] * len(images))
            continue
        expected = (len(images), detector.image_size, detector.image_size)
        if tuple(maps.shape) != expected:
            raise ValueError(f"The maps of {detector.name} have shape {tuple(maps.shape)}; expected {expected}.")
        values = maps.detach().float().cpu().numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"The maps of {detector.name} contain NaN or infinite values; expected finite values.")
        found.extend(values)
    return found


def draw_methods(examples: Sequence[Example], maps: Mapping[str, Sequence[np.ndarray | str]]) -> "Figure":
    """
    Draw the anomaly maps of several methods side by side (Fig. 4 of the paper), one row per image.

    The columns are the image, the ground truth and the methods. The colour scale of a method is the same for all
    images: from 0 to 1, or, if a value of the method is outside, from its smallest to its largest value. The title of
    the column says which. The range of values is below each map.

    Args:
        examples (`Sequence[Example]`):
            The images, for example of several datasets.
        maps (`Mapping[str, Sequence[np.ndarray | str]]`):
            By name of the method, a map of any size for each image, see [`method_maps`], or the reason why there is
            none.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`write_figure`] writes it.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no examples or methods, or a method has another number of maps than there are images.
    """
    if not maps:
        raise ValueError("maps is empty; expected the maps of at least one method.")
    for name, own in maps.items():
        if len(own) != len(examples):
            raise ValueError(f"maps has {len(own)} maps of {name}; expected {len(examples)}, one for each image.")
    ranges = {name: _value_range([one for one in own if not isinstance(one, str)]) for name, own in maps.items()}
    heads = [
        shown(name) if limits is None else f"{shown(name)}\n{_range_text(*limits)}" for name, limits in ranges.items()
    ]
    figure, axes = _sheet(examples, ["image", TRUTH, *heads])
    drawn = None
    for number, (example, row) in enumerate(zip(examples, axes)):
        canvas = _draw_photo(row[0], example)
        _draw_truth(row[1], example, canvas)
        for axis, (name, own) in zip(row[2:], maps.items()):
            values, limits = own[number], ranges[name]
            if isinstance(values, str) or limits is None:
                _leave_out(axis, canvas, str(values))
            else:
                drawn = _draw_map(axis, canvas, values, limits)
    if drawn is not None:
        same = all(limits in (UNIT, None) for limits in ranges.values())
        _add_bar(figure, axes, drawn, ("0", "1") if same else ("smallest", "largest value of the scale"))
    figure.suptitle("Anomaly maps of the methods; below each title is its colour scale", fontsize=9)
    return figure


# Parts of a sheet


def _sheet(examples: Sequence[Example], heads: Sequence[str]) -> "tuple[Figure, np.ndarray]":
    """Create a sheet with the titles of its columns."""
    if not examples:
        raise ValueError("examples is empty; expected at least one image.")
    photos = [example.image for example in examples]
    width = max(panel(photo, SIDE)[0] for photo in photos)
    captions = [textwrap.wrap(shown(example.caption), max(12, int(width * CHARACTERS))) for example in examples]
    lines = max(map(len, captions))
    figure, axes = photo_grid(photos, len(heads), SIDE, above=0.95, below=0.15 + 0.12 * max(1, lines))
    for number, (row, caption) in enumerate(zip(axes, captions)):
        for axis, head in zip(row, heads):
            bare(axis, head if number == 0 else "")
        row[0].set_xlabel("\n".join(caption), fontsize=7, parse_math=False)
    return figure, axes


def _draw_photo(axis: "Axes", example: Example) -> PhotoCanvas:
    canvas = PhotoCanvas(example.image)
    canvas.draw(axis, axis.get_title())
    return canvas


def _draw_truth(axis: "Axes", example: Example, canvas: PhotoCanvas) -> None:
    if example.mask is None:
        _leave_out(axis, canvas, "no mask")
    else:
        canvas.draw_mask(axis, example.mask, axis.get_title())


def _leave_out(axis: "Axes", canvas: PhotoCanvas, reason: str) -> None:
    """Write why a panel is empty. It keeps the shape of the photo."""
    left, right, bottom, top = canvas.extent
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    write_on(axis, "\n".join(textwrap.wrap(shown(reason), 18)))


def _draw_map(axis: "Axes", canvas: PhotoCanvas, values: np.ndarray, limits: tuple[float, float]) -> "AxesImage":
    drawn = canvas.draw_map(axis, values, axis.get_title(), limits)
    found = (float(values.min()), float(values.max()))
    axis.set_xlabel("{:.3f} to {:.3f}".format(*found) if limits == UNIT else _range_text(*found), fontsize=7)
    return drawn


def _add_bar(figure: "Figure", axes: np.ndarray, drawn: Any, ends: tuple[str, str]) -> None:
    """Add a colour bar for all panels below the sheet."""
    bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.4, aspect=40, fraction=0.02, pad=0.01)
    bar.set_ticks(list(drawn.get_clim()), labels=list(ends))
    bar.ax.tick_params(labelsize=7)


def _value_range(maps: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Choose the colour scale of a method, or `None` without maps."""
    if not maps:
        return None
    low, high = min(float(one.min()) for one in maps), max(float(one.max()) for one in maps)
    return UNIT if low >= -TOLERANCE and high <= 1 + TOLERANCE else (low, high)


def _range_text(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


__all__ = ["draw_attention", "draw_layers", "draw_methods", "method_maps"]
