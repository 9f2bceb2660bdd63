"""Create and save matplotlib figures without a display."""

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from .extras import extra
from .files import write_atomically


if TYPE_CHECKING:
    import numpy as np
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


# Pixels; matplotlib draws fewer than 2**16.
MAX_SIDE = 60_000


def new_figure(width: float, height: float, dpi: float = 110) -> "Figure":
    """
    Create an empty figure without a window. Unlike figures of pyplot, it is not kept in a global list.

    Args:
        width, height (`float`): size in inches.
        dpi (`float`, defaults to 110): pixels per inch. Lower if the figure would have more pixels per side than
            matplotlib can draw.

    Returns:
        `matplotlib.figure.Figure`: the figure.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    with extra("train", "Drawing figures"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained", dpi=min(dpi, MAX_SIDE / max(width, height)))
    FigureCanvasAgg(figure)
    return figure


def color_map(name: str, table: "np.ndarray") -> "Colormap":
    """
    Create a colour map of matplotlib from a table.

    Args:
        name (`str`): name of the colour map.
        table (`np.ndarray` of shape `(steps, 3)` or `(steps, 4)`): uint8 colours, with the opacity if there are four.

    Returns:
        `matplotlib.colors.Colormap`: the colour map.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    with extra("train", "Drawing figures"):
        from matplotlib.colors import ListedColormap
    return ListedColormap(table / 255.0, name=name)


def save_figure(figure: "Figure", path: str | os.PathLike) -> Path:
    """
    Save a figure as PNG. Missing folders are created, and an error does not leave a partial file.

    Args:
        figure (`matplotlib.figure.Figure`): the figure.
        path (`str` or `os.PathLike`): file to write; must end in `.png`.

    Returns:
        `pathlib.Path`: path of the file.

    Raises:
        ValueError: if `path` does not end in `.png`.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{str(path)!r} does not end in .png; figures are saved as PNG. Change the extension.")
    content = figure_content(figure, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def figure_content(figure: "Figure", file_format: str, resolution: float | None = None) -> bytes:
    """
    Render a figure. The same figure gives the same bytes: they contain no date.

    Args:
        figure (`matplotlib.figure.Figure`): the figure.
        file_format (`str`): `"png"` or `"pdf"`.
        resolution (`float`, *optional*): pixels per inch; defaults to that of the figure.

    Returns:
        `bytes`: content of the file.
    """
    content = BytesIO()
    metadata = {"CreationDate": None} if file_format == "pdf" else None
    figure.savefig(content, format=file_format, dpi=resolution or "figure", metadata=metadata)
    return content.getvalue()


__all__ = ["figure_content", "new_figure", "save_figure"]
