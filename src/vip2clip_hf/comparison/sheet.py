"""One picture of a comparison: rows are photos, columns are methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.sheets import choose_examples, spread
from ..models.vip2clip.arguments_vip2clip import LABELS
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..plotting.canvas import PhotoCanvas, bare, photo_grid, write_on
from ..utils.text import shown
from .measurement import Measurement


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure


SIDE = 1.6  # inches
SCALE = "anomaly map, divided by the number of maps that the method adds up"


def choose_rows(dataset: "Dataset", count: int) -> list[int]:
    """
    Choose the photos of the sheet, always the same for the same photos.

    Args:
        dataset (`datasets.Dataset`): the photos.
        count (`int`): number of photos.

    Returns:
        `list[int]`: at most `count` positions: about a quarter normal photos and the others spread over the kinds of
        defects, anomalous photos first; without labels, spread evenly.
    """
    labels = list(dataset["label"])
    if any(label is None for label in labels):
        return spread(list(range(len(labels))), count)
    return choose_examples(labels, dataset["defect"], count)


def draw_comparison(
    dataset: "Dataset",
    positions: Sequence[int],
    measurements: Sequence[Measurement],
    mask_options: MaskOptions,
    reading: dict[str, Any],
) -> "Figure":
    """
    Draw the maps of all methods on one colour scale.

    Methods have maps of different ranges: probabilities, or sums of the maps of layers. Each map is divided by the
    number of maps that its method adds up (`map_maximum`). 0 and 1 are the ends of the scale for all methods. Below
    each map are the score and the range of its values, before the division.

    Args:
        dataset (`datasets.Dataset`): the photos, not decoded.
        positions (`Sequence[int]`): photos to draw, at least one.
        measurements (`Sequence[Measurement]`): what the methods computed, with the maps of these photos.
        mask_options ([`MaskOptions`]): how to read masks.
        reading (`dict[str, Any]`): how to read photos, see [`load_image`].

    Returns:
        `matplotlib.figure.Figure`: the sheet. There is a column with the masks if one of the photos has a mask.

    Raises:
        ImportError: if matplotlib is not installed.
        OSError: if a photo or mask cannot be read.
        ValueError: if a mask is not valid or differs in size from its photo.
    """
    rows = [dataset[position] for position in positions]
    photos = [load_image(row["image"], **reading) for row in rows]
    with_masks = any(row["mask"] is not None for row in rows)
    titles = ["photo", *(["ground truth"] if with_masks else []), *(one.competitor.name for one in measurements)]
    figure, axes = photo_grid(photos, len(titles), SIDE)
    drawn = None
    for number, (photo, row, panels) in enumerate(zip(photos, rows, axes)):
        canvas, heads = PhotoCanvas(photo), titles if number == 0 else [""] * len(titles)
        canvas.draw(panels[0], heads[0])
        label = "" if row["label"] is None else f"\n{LABELS[row['label']]}"
        panels[0].set_xlabel(f"{_shorten(shown(row['image_id']))}{label}", fontsize=6, parse_math=False)
        if with_masks:
            _draw_mask(canvas, panels[1], heads[1], row, mask_options)
        for panel, head, one in zip(panels[1 + with_masks :], heads[1 + with_masks :], measurements):
            values = one.maps.get(positions[number])
            if values is None:
                bare(panel, head)
                write_on(panel, "no map")
                continue
            drawn = canvas.draw_map(panel, values / one.map_maximum, head, grey=True)
            text = f"score {one.scores[positions[number]]:.3f}\n{values.min():.3f} to {values.max():.3f}"
            panel.set_xlabel(text, fontsize=6)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.4, aspect=40, fraction=0.02, pad=0.01)
        bar.set_label(SCALE, fontsize=7)
        bar.ax.tick_params(labelsize=7)
    return figure


def _draw_mask(canvas: PhotoCanvas, panel: Any, head: str, row: dict[str, Any], options: MaskOptions) -> None:
    if row["mask"] is not None:
        canvas.draw_mask(panel, marked_pixels(row["mask"], MaskOptions.named(row).over(options), row["image"]), head)
    elif row["label"] == 0:
        canvas.draw_mask(panel, np.zeros(canvas.size, dtype=bool), head)
    else:
        bare(panel, head)
        write_on(panel, "no mask")


def _shorten(text: str, length: int = 26) -> str:
    """Keep the end of a long text."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


__all__ = ["SCALE", "choose_rows", "draw_comparison"]
