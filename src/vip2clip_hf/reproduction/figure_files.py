"""Write a figure of the paper as PNG and PDF. The same figure gives the same files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.figures import figure_content
from ..utils.files import file_names, write_atomically


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Resolution in pixels per inch: of the PNG file, and of pictures in the PDF file.
RESOLUTION = 160


def write_figure(figure: "Figure", folder: str | os.PathLike, number: int, suffix: str = "") -> list[Path]:
    """
    Write a figure as `figure<number>.png` and `figure<number>.pdf`.

    An error does not leave a partial file. The files contain no date.

    Args:
        figure (`matplotlib.figure.Figure`): the figure.
        folder (`str` or `os.PathLike`): folder to write to; created if it does not exist. Existing files are replaced.
        number (`int`): number of the figure in the paper.
        suffix (`str`, defaults to `""`): name of a part of the figure, which has a file of its own.

    Returns:
        `list[pathlib.Path]`: paths of the PNG and the PDF file.

    Raises:
        OSError: if a file cannot be written.
    """
    name = f"figure{number}" + (f"-{file_names([suffix])[suffix]}" if suffix else "")
    paths = [Path(folder) / f"{name}.{extension}" for extension in ("png", "pdf")]
    contents = [figure_content(figure, path.suffix[1:], RESOLUTION) for path in paths]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths, contents):
        write_atomically(path, content)
    return paths


__all__ = ["write_figure"]
