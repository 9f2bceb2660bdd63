"""Sheets of example images: image, ground truth and map side by side, on a fixed scale."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.collator import undecoded
from ..models.vip2clip.decision_vip2clip import LABELS
from ..models.vip2clip.image_loading_vip2clip import load_image, load_mask
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.distributed import world
from ..utils.figures import new_figure, save_figure
from ..utils.files import file_names


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure


# Pictures in a sheet are no larger than this.
MAX_SIDE = 512


def choose_examples(labels: Sequence[int], defects: Sequence[str], count: int) -> list[int]:
    """
    Positions of the images of a sheet: about a quarter normal, the others spread evenly over the kinds of defects. The
    same for the same data.
    """
    normal = [position for position, label in enumerate(labels) if label == 0]
    anomalous = [position for position, label in enumerate(labels) if label == 1]
    anomalous.sort(key=lambda position: (defects[position] or "", position))
    num_normal = min(len(normal), max(count // 4, count - len(anomalous)))
    return _spread(anomalous, count - num_normal) + _spread(normal, num_normal)


def _spread(positions: list[int], count: int) -> list[int]:
    count = min(count, len(positions))
    return [positions[(2 * number + 1) * len(positions) // (2 * count)] for number in range(count)]


def draw_sheet(rows: Sequence[dict[str, Any]], title: str, value_range: tuple[float, float] = (0.0, 1.0)) -> "Figure":
    """
    One row of pictures an image: photo, ground truth, anomaly map. The colours mean the same in all maps, whatever
    their values; what these span stands over each.

    Args:
        rows (`Sequence[dict]`):
            Each with `image` (a PIL image), `mask` (bool array of shape `(height, width)`, or None), `anomaly_map`
            (array of any size in [0, 1]) and `caption`.
        title (`str`):
            Over the sheet.
        value_range (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            Values at the ends of the colour scale.

    Returns:
        `matplotlib.figure.Figure`: needs no display.
    """
    low, high = value_range
    figure = new_figure(6.6, 0.7 + 2.15 * len(rows))
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (photo, truth, heat), row in zip(axes, rows):
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
        drawn = heat.imshow(values, cmap="inferno", vmin=low, vmax=high, extent=extent)
        photo.set_title(row["caption"], fontsize=6, loc="left")
        heat.set_title(f"{values.min():.3f} to {values.max():.3f}", fontsize=6, loc="left")
    for axis, name in zip(axes[0], ("image", "ground truth", "anomaly map")):
        axis.annotate(name, (0.5, 1.22), xycoords="axes fraction", ha="center", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.5, aspect=40, fraction=0.02, pad=0.01)
    figure.suptitle(title, fontsize=9)
    return figure


def write_sheets(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    dataset: "Dataset",
    folder: str | os.PathLike,
    *,
    count: int = 8,
    mask_threshold: int | float = 0,
    title: str = "",
    value_range: tuple[float, float] = (0.0, 1.0),
) -> list[Path]:
    """
    A PNG sheet of `count` images for every category; those that are there already are kept. Several processes divide
    the categories between them.

    Returns:
        `list[pathlib.Path]`: the sheets of all categories, in their order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = undecoded(dataset)
    categories = dataset["category"]
    names = file_names(list(dict.fromkeys(categories)))
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
            image = load_image(row["image"])
            with torch.inference_mode():
                outputs = model(image_processor(image, return_tensors="pt")["pixel_values"].to(model.device))
            score = outputs.scores.item()
            caption = f"{_end_of(row['image_id'])}\n{LABELS[row['label']]}, score {score:.3f}"
            mask = None
            if row["mask"] is not None:
                mask = load_mask(row["mask"]) > mask_threshold
            elif row["label"] == 0:
                mask = np.zeros((image.height, image.width), dtype=bool)
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            heat = outputs.anomaly_maps[0].float().cpu().numpy()
            rows.append({"image": image, "mask": mask, "anomaly_map": heat, "caption": caption})
        figure = draw_sheet(rows, f"{title} {category}".strip(), value_range)
        save_figure(figure, paths[-1])
    return paths


def _end_of(text: str, longest: int = 34) -> str:
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


__all__ = ["choose_examples", "draw_sheet", "write_sheets"]
