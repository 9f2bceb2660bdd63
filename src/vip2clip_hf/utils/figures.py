"""Figures without a display: an empty one, and writing it to a file."""

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from .extras import extra
from .files import write_atomically


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """
    An empty figure of so many inches that belongs to no window and no global state, as pyplot's do.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with extra("train", "Drawing figures"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
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


__all__ = ["new_figure", "save_figure"]
