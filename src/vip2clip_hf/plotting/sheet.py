"""Figure of the results of several images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.mask_loading_vip2clip import marked_pixels
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .canvas import MASK_COLOR, TRUTH_COLOR, PhotoCanvas, bare, map_colors, photo_grid, shrink, write_on
from .results import check_result, check_size, score_parts


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Inches, pixels per inch, and sizes of fonts: readable if the figure is shown at half its size.
PANEL, DPI, HEAD_SIZE, TEXT_SIZE = 2.2, 200, 12, 10


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
    set, the ground truth. Maps have the fixed scale from 0 to 1. Below the photo is its title, below the map its score
    and p-value, below the overlay the decision, and below the ground truth the size of the defect. The figure has at
    least 1600 pixels in width with ground truth, so it is sharp on screens with two pixels per point.

    Args:
        images (`Sequence`):
            Images, in any form that the pipeline accepts.
        results (`Sequence[dict]`):
            Outputs of the pipeline for these images, at the size of the images.
        ground_truths (`Sequence`, *optional*):
            True masks at the size of the images, all zero for normal images, `None` for images without one. See
            [`load_mask`].
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
    columns = ["photo", "anomaly map", "overlay", *(["ground truth"] if ground_truths is not None else [])]
    figure, axes = photo_grid(photos, len(columns), PANEL, above=1.2, below=0.4, dpi=DPI)
    for axis, head in zip(axes[0], columns):
        bare(axis, head, HEAD_SIZE)
    entries = {}
    for number, (photo, result, row) in enumerate(zip(photos, results, axes)):
        anomaly_map, mask = check_result(result, photo)
        shown = PhotoCanvas(photo)
        heads = [axis.get_title() for axis in row]
        shown.draw(row[0], heads[0])
        drawn = row[1].imshow(shrink(anomaly_map, shown.size), cmap=map_colors(), vmin=0, vmax=1, extent=shown.extent)
        shown.draw_map(row[2], anomaly_map, heads[2])
        entries["marked by the detector"] = shown.outline(row[2], mask, MASK_COLOR, "solid", "marked by the detector")
        below = [titles[number] if titles is not None else "", ", ".join(score_parts(result)), str(result["label"])]
        if ground_truths is not None:
            truth = ground_truths[number]
            if truth is None:
                write_on(row[3], "no mask available")
                below.append("")
            else:
                marked = marked_pixels(truth, options, images[number], "ground_truths")
                check_size("ground_truths", marked, photo)
                shown.draw(row[3], heads[3], grey=True)
                entry = shown.outline(row[3], marked, TRUTH_COLOR, "dashed", "ground truth")
                entries["ground truth"] = entry
                below.append(f"defect: {marked.mean():.1%} of the pixels" if marked.any() else "no defect")
        for axis, head, text in zip(row, heads, below):
            bare(axis, head, HEAD_SIZE)
            axis.set_xlabel(text, fontsize=TEXT_SIZE, parse_math=False)
        row[2].xaxis.label.set_fontweight("bold")
    bar = figure.colorbar(drawn, ax=axes, location="bottom", fraction=0.02, pad=0.01, aspect=50, shrink=0.6)
    bar.set_label("anomaly map", fontsize=TEXT_SIZE)
    bar.ax.tick_params(labelsize=TEXT_SIZE)
    figure.legend(
        handles=list(entries.values()), loc="outside lower center", ncols=2, fontsize=TEXT_SIZE, frameon=False
    )
    return figure


__all__ = ["results_figure"]
