"""Sheets of example images: image, ground truth and anomaly map side by side, on a fixed colour scale."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.targets import undecoded
from ..models.vip2clip.arguments_vip2clip import LABELS
from ..models.vip2clip.heatmap_vip2clip import HEATMAP_COLORS
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import DEFAULT_MASK_OPTIONS, MaskOptions
from ..utils.distributed import world
from ..utils.figures import color_map, new_figure, save_figure
from ..utils.files import file_names
from ..utils.text import shown
from .detector import Detector, check_detectors, check_output


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure
    from PIL import Image


# Longest side of an image in a sheet, in pixels.
MAX_SIDE = 512


def choose_examples(labels: Sequence[int], defects: Sequence[str], count: int) -> list[int]:
    """
    Choose the images of a sheet: about a quarter normal images, the others spread evenly over the kinds of defects.

    Args:
        labels (`Sequence[int]`): label of every image, 0 for normal, 1 for anomalous.
        defects (`Sequence[str]`): kind of defect of every image.
        count (`int`): number of images to choose.

    Returns:
        `list[int]`: positions of the images, anomalous images first. At most `count`, and always the same for the same
        arguments.
    """
    normal = [position for position, label in enumerate(labels) if label == 0]
    anomalous = [position for position, label in enumerate(labels) if label == 1]
    anomalous.sort(key=lambda position: (defects[position] or "", position))
    num_normal = min(len(normal), max(count // 4, count - len(anomalous)))
    return spread(anomalous, count - num_normal) + spread(normal, num_normal)


def spread(positions: list[int], count: int) -> list[int]:
    """
    Choose positions that are spread evenly.

    Args:
        positions (`list[int]`): positions to choose from.
        count (`int`): how many to choose.

    Returns:
        `list[int]`: at most `count` of them, in the same order.
    """
    count = min(count, len(positions))
    return [positions[(2 * number + 1) * len(positions) // (2 * count)] for number in range(count)]


def draw_sheet(rows: Sequence[dict[str, Any]], title: str, value_range: tuple[float, float] = (0.0, 1.0)) -> "Figure":
    """
    Draw a sheet with one row per image: image, ground truth and anomaly map.

    All maps have the same colour scale. The title of each map shows its range of values.

    Args:
        rows (`Sequence[dict]`):
            Images, at least one. Each is a dict with `image` (PIL image), `mask` (bool array of shape
            `(height, width)`, or `None`), `anomaly_map` (2-D array of any size, in [0, 1]) and `caption` (`str`).
        title (`str`):
            Title of the sheet.
        value_range (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            Values at the ends of the colour scale.

    Returns:
        `matplotlib.figure.Figure`: the sheet. It does not need a display.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no rows.
    """
    low, high = value_range
    figure, colors = new_figure(6.6, 0.7 + 2.15 * len(rows)), color_map("vip2clip_map", HEATMAP_COLORS)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (photo, truth, heatmap), row in zip(axes, rows):
        image = row["image"].convert("RGB")
        width, height = image.size
        extent = (0, width, height, 0)
        photo.imshow(image)
        if row["mask"] is None:
            truth.text(0.5, 0.5, "no mask", ha="center", va="center", transform=truth.transAxes, fontsize=7)
            truth.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        else:
            truth.imshow(row["mask"], cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        values = np.asarray(row["anomaly_map"])
        drawn = heatmap.imshow(values, cmap=colors, vmin=low, vmax=high, extent=extent)
        photo.set_title(row["caption"], fontsize=6, loc="left", parse_math=False)
        heatmap.set_title(f"{values.min():.3f} to {values.max():.3f}", fontsize=6, loc="left")
    for axis, name in zip(axes[0], ("image", "ground truth", "anomaly map")):
        axis.annotate(name, (0.5, 1.22), xycoords="axes fraction", ha="center", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.5, aspect=40, fraction=0.02, pad=0.01)
    figure.suptitle(shown(title), fontsize=9, parse_math=False)  # names may contain $
    return figure


def write_sheets(
    detector: Detector | Mapping[str, Detector],
    dataset: "Dataset",
    folder: str | os.PathLike,
    *,
    count: int = 8,
    mask_options: MaskOptions | None = None,
    title: str = "",
    value_range: tuple[float, float] = (0.0, 1.0),
    bit_depth: int | None = None,
    page: int | None = None,
) -> list[Path]:
    """
    Write a sheet of example images for each category, `<category>.png`. Existing sheets are kept.

    If torch.distributed is initialized, the processes share the categories.

    Args:
        detector ([`Detector`] or `Mapping[str, Detector]`):
            The method, or one detector per category. It must return anomaly maps.
        dataset (`datasets.Dataset`):
            Dataset returned by [`load_folder`] or [`load_benchmark`], with a label for every image.
        folder (`str` or `os.PathLike`):
            Folder to write to. It is created if it does not exist.
        count (`int`, defaults to 8):
            Number of images per sheet.
        mask_options ([`MaskOptions`], *optional*):
            How to read masks. By default, mask values greater than 0 are anomalous.
        title (`str`, defaults to `""`):
            Title of the sheets, followed by the name of the category.
        value_range (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            Anomaly map values at the ends of the colour scale.
        bit_depth, page (`int`, *optional*):
            How to read images, see [`load_image`].

    Returns:
        `list[pathlib.Path]`: one path per category, in the order of the dataset.

    Raises:
        ImportError: if datasets or matplotlib is not installed.
        OSError: if an image cannot be read, or a sheet cannot be written.
        ValueError: if a mask is not valid or differs in size from its image, or the detector is invalid or returns no
            anomaly maps.
    """
    options = DEFAULT_MASK_OPTIONS if mask_options is None else mask_options.over(DEFAULT_MASK_OPTIONS)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = undecoded(dataset)
    categories = dataset["category"]
    names = file_names(list(dict.fromkeys(categories)))
    detectors = check_detectors(detector, categories)
    rank, world_size = world()
    labels, defects, paths = dataset["label"], dataset["defect"], []
    for number, (category, name) in enumerate(names.items()):
        paths.append(folder / f"{name}.png")
        if number % world_size != rank or paths[-1].exists():
            continue
        members = [position for position, one in enumerate(categories) if one == category]
        chosen = choose_examples([labels[i] for i in members], [defects[i] for i in members], count)
        rows = []
        for position in (members[i] for i in chosen):
            row = dataset[position]
            image = load_image(row["image"], bit_depth=bit_depth, page=page)
            score, anomaly_map = _score(detectors[category], image)
            caption = f"{_shorten(shown(row['image_id']))}\n{LABELS[row['label']]}, score {score:.3f}"
            mask = None
            if row["mask"] is not None:
                mask = marked_pixels(row["mask"], MaskOptions.named(row).over(options), row["image"])
            elif row["label"] == 0:
                mask = np.zeros((image.height, image.width), dtype=bool)
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            rows.append({"image": image, "mask": mask, "anomaly_map": anomaly_map, "caption": caption})
        figure = draw_sheet(rows, f"{title} {category}".strip(), value_range)
        save_figure(figure, paths[-1])
    return paths


def _score(detector: Detector, image: "Image.Image") -> tuple[float, np.ndarray]:
    """Score and anomaly map of one photo."""
    with torch.no_grad():
        output = detector.score(detector.prepare([image]))
    scores, maps = check_output(detector, output, 1)
    if maps is None:
        raise ValueError(f"The detector {detector.name!r} returns no anomaly maps; expected maps to draw.")
    return scores.item(), maps[0].float().cpu().numpy()


def _shorten(text: str, length: int = 34) -> str:
    """Keep the end of a long text."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


__all__ = ["choose_examples", "draw_sheet", "spread", "write_sheets"]
