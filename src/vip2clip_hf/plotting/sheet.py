"""Figure of the results of several images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .canvas import MASK_COLOR, TRUTH_COLOR, PhotoCanvas, bare, map_colors, photo_grid, shrink, write_on
from .results import check_result, check_size, summary


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def results_figure(
    images: Sequence[Any],
    results: Sequence[dict[str, Any]],
    ground_truths: Sequence[Any] | None = None,
    titles: Sequence[str] | None = None,
    *,
    mask_threshold: int | float | None = None,
    mask_options: MaskOptions | None = None,
) -> "Figure":
    """
    Draw the results of several images, one row per image.

    The columns are the photo, the anomaly map, the anomaly map over the photo with the outline of the mask, and, if
    set, the ground truth. Maps have the fixed scale from 0 to 1. Below the photo is its title, below the map score,
    label and p-value.

    Args:
        images (`Sequence`):
            Images, in any form that the pipeline accepts.
        results (`Sequence[dict]`):
            Outputs of the pipeline for these images, at the size of the images.
        ground_truths (`Sequence`, *optional*):
            True masks at the size of the images, `None` for images without one. See [`load_mask`].
        titles (`Sequence[str]`, *optional*):
            Line below each photo.
        mask_threshold (`int` or `float`, *optional*, defaults to 0):
            Values of the ground truths greater than this are anomalous. Use 127 for masks in a lossy format (JPEG).
        mask_options ([`MaskOptions`], *optional*):
            How to read the ground truths.

    Returns:
        `matplotlib.figure.Figure`: the figure; [`save_figure`] writes it to a file.

    Raises:
        ValueError: if `images` is empty, the sequences differ in length, or a result or ground truth does not fit
            its image.
        OSError: if an image cannot be read.
        ImportError: if matplotlib is not installed.
    """
    for name, values in (("images", images), ("results", results)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise ValueError(f"{name} is a {type(values).__name__}; expected a list, with one entry for each image.")
    if not images:
        raise ValueError("images is empty; expected at least one image.")
    for name, other in (("results", results), ("ground_truths", ground_truths), ("titles", titles)):
        if other is not None and len(other) != len(images):
            raise ValueError(f"{name} has {len(other)} entries; expected {len(images)}, one for each image.")
    photos = [load_image(image) for image in images]
    options = MaskOptions(threshold=mask_threshold).over(mask_options or MaskOptions())
    columns = ["photo", "anomaly map", "marked region", *(["ground truth"] if ground_truths is not None else [])]
    figure, axes = photo_grid(photos, len(columns), 2.2)
    for number, (photo, result, row) in enumerate(zip(photos, results, axes)):
        anomaly_map, mask = check_result(result, photo)
        shown = PhotoCanvas(photo)
        heads = columns if number == 0 else [""] * len(columns)
        shown.draw(row[0], heads[0])
        small = shrink(anomaly_map, shown.size)
        row[1].imshow(small, cmap=map_colors(), vmin=0, vmax=1, extent=shown.extent)
        bare(row[1], heads[1])
        shown.draw_map(row[2], anomaly_map, heads[2])
        shown.outline(row[2], mask, MASK_COLOR, "solid", "mask")
        if ground_truths is not None:
            truth = ground_truths[number]
            if truth is None:
                bare(row[3], heads[3])
                write_on(row[3], "not available")
            else:
                marked = marked_pixels(truth, options, images[number], "ground_truths")
                check_size("ground_truths", marked, photo)
                shown.draw(row[3], heads[3], grey=True)
                shown.outline(row[3], marked, TRUTH_COLOR, "solid", "ground truth")
        if titles is not None:
            row[0].set_xlabel(titles[number], fontsize=8, parse_math=False)
        row[1].set_xlabel(summary(result), fontsize=8, parse_math=False)
    return figure


__all__ = ["results_figure"]
