"""A photo on a matplotlib axis, with maps, masks and outlines over it."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..models.vip2clip.heatmap_vip2clip import HEATMAP_COLORS, HEATMAP_OPACITY


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

# Photos and maps are drawn with at most so many pixels a side: of 100 megapixels no figure shows more.
MAX_SIDE = 1024
# Inches that a title needs.
LEAST_WIDTH = 4.8
# Neither stands in the heatmap. The ground truth is dashed as well, for those who cannot tell them apart.
MASK_COLOR = "#0050ff"
TRUTH_COLOR = "#00963c"


def heat_colors() -> "Colormap":
    """The colours of the heatmap as a colour map: 0 lets everything through, 1 covers with dark red."""
    from matplotlib.colors import LinearSegmentedColormap

    opacity = np.linspace(0, HEATMAP_OPACITY, len(HEATMAP_COLORS))
    return LinearSegmentedColormap.from_list("vip2clip_heat", np.column_stack([HEATMAP_COLORS / 255, opacity]), N=256)


def panel(photo: Image.Image, side: float) -> tuple[float, float]:
    """Inches for a picture whose longer side is to have so many; the shorter gets at least a third of that."""
    scale = side / max(photo.size)
    return max(photo.width * scale, side / 3), max(photo.height * scale, side / 3)


def shrink(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest of the values under every pixel of a smaller picture; as they are where it is not smaller."""
    for axis, side in enumerate(size):
        if side < values.shape[axis]:
            starts = np.arange(side) * values.shape[axis] // side
            values = np.maximum.reduceat(values, starts, axis=axis)
    return values


class PhotoCanvas:
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
        bare(axis, title)

    def draw_mask(self, axis: "Axes", mask: np.ndarray, title: str):
        options = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        axis.imshow(shrink(mask, self.size), extent=self.extent, **options)
        bare(axis, title)

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
        return axis.imshow(shrink(values, self.size), cmap=heat_colors(), vmin=low, vmax=high, extent=self.extent)

    def outline(self, axis: "Axes", mask: np.ndarray, color: str, style: str, name: str) -> "Line2D":
        """Draw the outline of a mask; gives what stands for it in a legend."""
        from matplotlib.lines import Line2D
        from matplotlib.patheffects import withStroke

        if mask.any():
            small = np.pad(shrink(mask, self.size), 1)  # closed where the mask touches the edge
            # Centres of the pixels; those of the padding lie on the edge of the photo.
            y, x = (
                ((np.arange(count + 2) - 0.5) * whole / count).clip(0, whole)
                for count, whole in zip(self.size, mask.shape)
            )
            lines = axis.contour(x, y, small.astype(float), [0.5], colors=[color], linestyles=style, linewidths=1.2)
            lines.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
        return Line2D([], [], color=color, linestyle=style, linewidth=1.2, label=name)


def bare(axis: "Axes", title: str):
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7)


def color_bar(figure: "Figure", axis: "Axes", drawn: "AxesImage", width: float, **options) -> "Colorbar":
    """A colour bar as high as the picture it belongs to, which is so many inches wide."""
    bar = figure.colorbar(drawn, cax=axis.inset_axes([1 + 0.05 / width, 0, 0.12 / width, 1]), **options)
    bar.ax.tick_params(labelsize=7)
    return bar


__all__ = ["LEAST_WIDTH", "MASK_COLOR", "TRUTH_COLOR", "PhotoCanvas", "color_bar", "heat_colors", "panel"]
