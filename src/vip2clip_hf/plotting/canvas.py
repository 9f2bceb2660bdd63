"""Draw a photo with maps, masks and outlines on a matplotlib axis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from ..models.vip2clip.heatmap_vip2clip import HEATMAP_ALPHAS, HEATMAP_COLORS
from ..utils.figures import color_map, new_figure


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

# Maximum side, in pixels, of drawn photos and maps. Figures have too few pixels to show more.
MAX_SIDE = 1024
# Width, in inches, that fits the titles.
MIN_WIDTH = 4.8
# Neither colour occurs in the heatmap. The ground truth is also dashed, for readers who are colour blind.
MASK_COLOR = "#0050ff"
TRUTH_COLOR = "#00963c"


def heat_colors() -> "Colormap":
    """
    Create a matplotlib colour map with the colours and opacity of the heatmap, to draw a map over a photo.

    Returns:
        `matplotlib.colors.Colormap`: 0 is transparent, 1 is orange.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    return color_map("vip2clip_heat", np.column_stack([HEATMAP_COLORS, HEATMAP_ALPHAS]))


def map_colors() -> "Colormap":
    """
    Create a matplotlib colour map with the colours of the heatmap, to draw a map without a photo.

    Returns:
        `matplotlib.colors.Colormap`: 0 is black, 1 is orange.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    return color_map("vip2clip_map", HEATMAP_COLORS)


def panel(photo: Image.Image, side: float) -> tuple[float, float]:
    """
    Compute the size of a panel for a photo.

    Args:
        photo (`PIL.Image.Image`): the photo.
        side (`float`): longer side of the panel in inches.

    Returns:
        `tuple[float, float]`: width and height in inches; the shorter side is at least a third of the longer one.
    """
    scale = side / max(photo.size)
    return max(photo.width * scale, side / 3), max(photo.height * scale, side / 3)


def shrink(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Shrink an array by taking the maximum over the area of each pixel. Axes that are not larger stay unchanged.

    Args:
        values (`np.ndarray` of shape `(height, width)`): a map or mask.
        size (`tuple[int, int]`): maximum height and width.

    Returns:
        `np.ndarray`: the array, with at most `size` pixels.
    """
    for axis, side in enumerate(size):
        if side < values.shape[axis]:
            starts = np.arange(side) * values.shape[axis] // side
            values = np.maximum.reduceat(values, starts, axis=axis)
    return values


class PhotoCanvas:
    """
    Draw a photo, maps, masks and outlines, shrunk to at most `MAX_SIDE` pixels per side.

    The coordinates of the axes are pixels of the original photo.

    Args:
        photo (`PIL.Image.Image`): the photo.
    """

    def __init__(self, photo: Image.Image) -> None:
        scale = min(1.0, MAX_SIDE / max(photo.size))
        self.size = max(1, round(photo.height * scale)), max(1, round(photo.width * scale))  # height, width
        self.extent = (0, photo.width, photo.height, 0)
        # Image.thumbnail would copy the whole photo.
        self.picture = photo if scale == 1 else photo.resize(self.size[::-1], reducing_gap=2.0)

    def draw(self, axis: "Axes", title: str, grey: bool = False) -> None:
        """Draw the photo, in grey if set."""
        picture = self.picture.convert("L").convert("RGB") if grey else self.picture
        axis.imshow(np.asarray(picture), extent=self.extent)
        bare(axis, title)

    def draw_mask(self, axis: "Axes", mask: np.ndarray, title: str) -> None:
        """Draw a mask in black and white."""
        axis.imshow(shrink(mask, self.size), extent=self.extent, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        bare(axis, title)

    def draw_map(
        self,
        axis: "Axes",
        values: np.ndarray,
        title: str,
        value_range: tuple[float, float] = (0.0, 1.0),
        grey: bool = False,
    ) -> "AxesImage":
        """Draw a map over the photo and return its artist. Values below `value_range` are transparent."""
        self.draw(axis, title, grey)
        low, high = value_range
        return axis.imshow(shrink(values, self.size), cmap=heat_colors(), vmin=low, vmax=high, extent=self.extent)

    def outline(
        self, axis: "Axes", mask: np.ndarray, color: str, style: Literal["solid", "dashed"], name: str
    ) -> "Line2D":
        """Draw the outline of a mask and return its legend entry."""
        from matplotlib.lines import Line2D
        from matplotlib.patheffects import withStroke

        if mask.any():
            small = np.pad(shrink(mask, self.size), 1)  # closes outlines at the edge of the photo
            # Centres of the pixels; the centres of the padding are moved to the edge of the photo.
            y, x = (
                ((np.arange(count + 2) - 0.5) * whole / count).clip(0, whole)
                for count, whole in zip(self.size, mask.shape)
            )
            lines = axis.contour(x, y, small.astype(float), [0.5], colors=[color], linestyles=style, linewidths=1.2)
            lines.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
        return Line2D([], [], color=color, linestyle=style, linewidth=1.2, label=name)


def photo_grid(
    photos: Sequence[Image.Image],
    columns: int,
    side: float,
    above: float = 0.2,
    below: float = 0.35,
    dpi: float = 110,
) -> "tuple[Figure, np.ndarray]":
    """
    Create a figure with a row of panels for each photo. Panels have the shape of their photo.

    Args:
        photos (`Sequence[PIL.Image.Image]`): the photos, at least one.
        columns (`int`): number of panels in a row.
        side (`float`): longer side of a panel in inches.
        above (`float`, defaults to 0.2): height of the titles of the columns, in inches.
        below (`float`, defaults to 0.35): height of the text below each photo, in inches.
        dpi (`float`, defaults to 110): pixels per inch.

    Returns:
        `tuple[Figure, np.ndarray]`: the figure, and its axes as an array of shape `(num_photos, columns)`.
    """
    sizes = [panel(photo, side) for photo in photos]
    width, heights = max(width for width, _ in sizes), [height for _, height in sizes]
    figure = new_figure(columns * (width + 0.1), sum(height + below for height in heights) + above, dpi)
    axes = figure.subplots(len(photos), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, axes


def write_on(axis: "Axes", text: str) -> None:
    """Write a text in the middle of an empty panel."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, fontsize=8, parse_math=False)
    axis.spines[:].set_visible(False)


def bare(axis: "Axes", title: str, size: float = 7) -> None:
    """Set the title of an axis, in a font of this size, and remove its ticks."""
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=size, parse_math=False)


def color_bar(figure: "Figure", axis: "Axes", drawn: "AxesImage", width: float, **options: Any) -> "Colorbar":
    """
    Add a colour bar with the height of its panel.

    Args:
        figure, axis, drawn: the figure, the axis of the panel and the artist of its map.
        width (`float`): width of the panel in inches.
        options: passed to `Figure.colorbar`.

    Returns:
        `matplotlib.colorbar.Colorbar`: the colour bar.
    """
    bar = figure.colorbar(drawn, cax=axis.inset_axes((1 + 0.05 / width, 0, 0.12 / width, 1)), **options)
    bar.ax.tick_params(labelsize=7)
    return bar


__all__ = [
    "MASK_COLOR",
    "MIN_WIDTH",
    "TRUTH_COLOR",
    "PhotoCanvas",
    "bare",
    "color_bar",
    "heat_colors",
    "map_colors",
    "panel",
    "photo_grid",
    "shrink",
    "write_on",
]
