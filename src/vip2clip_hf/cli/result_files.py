"""Files of results that `vip2clip predict` and `vip2clip report` write: CSV, Excel, and photos sorted into folders."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import shows_progress, usage_error


if TYPE_CHECKING:
    from ..reporting.predictions import Predictions
    from ..reporting.sorting import Sorted
    from ..reporting.unsure import UnsureRule


def check_result_file(
    option: str,
    file: Path | None,
    endings: Sequence[str],
    overwrite: bool,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """
    Check a file to write, before the work whose result it gets.

    Args:
        option (`str`): name of the option, for the message.
        file (`pathlib.Path`, *optional*): the file. Nothing is checked without one.
        endings (`Sequence[str]`): allowed endings of the name, so that no photo is replaced by mistake.
        overwrite (`bool`): whether an existing file is replaced.
        inputs (`Iterable[str or os.PathLike]`): files that are read and must not be replaced.

    Raises:
        OSError: if the file exists, or is a folder or an input.
        typer.BadParameter: if the name has another ending.
    """
    if file is None:
        return
    if file.suffix.lower() not in endings:
        raise usage_error(f"{option} is {str(file)!r}; expected a name that ends with {' or '.join(endings)}.")
    if file.is_dir():
        raise OSError(f"{option} {str(file)!r} is a folder; expected a file.")
    for one in inputs:
        if file.exists() and os.path.exists(one) and os.path.samefile(file, one):
            raise OSError(f"{option} {str(file)!r} would replace a file that is read; expected another file.")
    if os.path.lexists(file) and not overwrite:
        raise OSError(f"{str(file)!r} already exists; choose another file, or replace it with --overwrite.")


def write_tables(found: "Predictions", csv: Path | None, xlsx: Path | None) -> dict[str, str]:
    """
    Write results as CSV and Excel files.

    Args:
        found ([`Predictions`]): the results.
        csv, xlsx (`pathlib.Path`, *optional*): files to write.

    Returns:
        `dict[str, str]`: the files that were written, by format.

    Raises:
        ImportError: if openpyxl is needed and not installed.
        OSError: if a file cannot be written.
    """
    written = {}
    if csv is not None:
        from ..reporting.csv_files import write_csv

        write_csv(found.rows, csv, found.settings)
        written["csv"] = str(csv)
    if xlsx is not None:
        from ..reporting.tables import write_xlsx

        write_xlsx(found, xlsx)
        written["xlsx"] = str(xlsx)
    return written


def sort_into_folders(
    found: "Predictions", output: Path, rule: "UnsureRule | None", link: str | None = None
) -> "Sorted":
    """
    Copy or link photos into folders by their result, with a progress bar.

    Args:
        found ([`Predictions`]): the results.
        output (`pathlib.Path`): folder to write.
        rule ([`UnsureRule`], *optional*): which decisions are unsure, see [`folders_of`].
        link (`"hard"` or `"symbolic"`, *optional*): link the photos instead of copying them.

    Returns:
        [`Sorted`]: the counts.

    Raises:
        OSError: see [`sort_photos`].
    """
    from tqdm.auto import tqdm

    from ..reporting.sorting import sort_photos
    from ..reporting.unsure import folders_of

    folders: dict[int, Any] = folders_of(found, rule)
    with tqdm(total=len(folders), desc="sorting", unit="photo", disable=not shows_progress()) as bar:
        return sort_photos(found, output, folders, link=link, on_photo=lambda: bar.update())


__all__ = ["check_result_file", "sort_into_folders", "write_tables"]
