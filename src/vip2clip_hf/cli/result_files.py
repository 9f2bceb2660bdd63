"""Files of results that `vip2clip predict` and `vip2clip report` write: CSV, Excel, and photos sorted into folders."""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.extras import require
from ..utils.text import counted
from .options import shows_progress, usage_error


if TYPE_CHECKING:
    from ..reporting.predictions import Predictions
    from ..reporting.sorting import Sorted
    from ..reporting.unsure import UnsureRule


@dataclass(frozen=True)
class ResultFiles:
    """
    Files of results that `vip2clip predict` writes on request.

    Args:
        csv, xlsx (`pathlib.Path`, *optional*): tables to write.
        sort (`pathlib.Path`, *optional*): folder for copies of the photos in `good/`, `defect/` and `unsure/`.
        margin (`float`, *optional*): scores within this distance of the threshold are unsure.
        link (`"hard"` or `"symbolic"`, *optional*): link the photos instead of copying them.
        append (`bool`): whether rows are added to an existing table.
        overwrite (`bool`): whether existing tables are replaced.
    """

    csv: Path | None = None
    xlsx: Path | None = None
    sort: Path | None = None
    margin: float | None = None
    link: str | None = None
    append: bool = False
    overwrite: bool = False

    @property
    def wanted(self) -> bool:
        """Whether there is anything to write."""
        return any(one is not None for one in (self.csv, self.xlsx, self.sort))

    def check(self, inputs: Sequence[str | os.PathLike[str]], from_folder: bool = False) -> None:
        """
        Check all files and packages before the photos are predicted.

        Args:
            inputs (`Sequence[str or os.PathLike]`): what is read and must not be changed.
            from_folder (`bool`, defaults to `False`): whether the results are also in the folder of --output.

        Raises:
            ImportError: if openpyxl is needed and not installed.
            OSError: if a file exists, or is inside of what is read.
            typer.BadParameter: if a name has another ending.
        """
        from ..utils.outputs import check_output

        # Tables of a folder are written again when a prediction resumes or grows.
        for option, file, ending in (("--csv", self.csv, ".csv"), ("--xlsx", self.xlsx, ".xlsx")):
            own = (self.append or from_folder) and file is not None and is_own_table(file)
            check_result_file(option, file, (ending,), self.overwrite or own, inputs)
        if self.xlsx is not None:
            require("report", "An Excel file", "openpyxl")
        if self.sort is not None:
            check_output("--sort", self.sort, inputs)

    def write(self, found: "Predictions") -> dict[str, Any]:
        """
        Write the files.

        Args:
            found ([`Predictions`]): the results.

        Returns:
            `dict[str, Any]`: `csv` and `xlsx` (paths), `sorted` (number of photos by folder), `rule` (which photos are
            unsure) and `missing` (photos that were not found).

        Raises:
            OSError: if a file cannot be written.
            ValueError: if photos are sorted and the threshold is not known.
        """
        written: dict[str, Any] = dict(write_tables(found, self.csv, self.xlsx))
        if self.sort is not None:
            from ..reporting.unsure import UnsureRule

            rule = UnsureRule.of(found, self.margin)
            done = sort_into_folders(found, self.sort, rule, self.link)
            written.update(sorted=done.counts, rule=str(rule), missing=done.missing)
        return written

    def report(self, written: dict[str, Any], tell: Callable[[str], None]) -> None:
        """
        Tell what was written.

        Args:
            written (`dict[str, Any]`): result of [`ResultFiles.write`].
            tell (`Callable[[str], None]`): called with each line.
        """
        for name in ("csv", "xlsx"):
            if name in written:
                tell(f"Results written to {written[name]}")
        if "sorted" in written:
            counts = ", ".join(f"{count} {name}" for name, count in written["sorted"].items())
            tell(f"Sorted into {self.sort}: {counts or 'no photos'}. {written['rule']}")
            if missing := written["missing"]:
                tell(f"Not found: {counted(len(missing), 'photo')}. The first: {next(iter(missing.values()))}")


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
    if file.suffix.lower() == ".csv":
        from ..reporting.csv_files import check_settings_file

        check_settings_file(file)


@contextmanager
def only_writer(file: Path | None) -> Iterator[None]:
    """
    Keep other programs from adding rows to a table in a `with` block, so that no row is lost.

    Args:
        file (`pathlib.Path`, *optional*): the table. Nothing is locked without one.

    Yields:
        None.

    Raises:
        OSError: if another program is adding rows.
    """
    if file is None:
        yield
        return
    try:
        from filelock import FileLock, Timeout
    except ModuleNotFoundError as error:  # torch installs it
        raise ImportError(
            "Adding rows to a table needs filelock, which is not installed: pip install filelock."
        ) from error

    file.parent.mkdir(parents=True, exist_ok=True)
    path = file.with_name(f".{file.name}.vip2clip-lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OSError(f"Another program is adding rows to {str(file)!r}; wait until it has finished.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # on Windows, an open file cannot be deleted
            path.unlink()  # before the release: no other program can hold it
        lock.release()


def is_own_table(file: Path) -> bool:
    """
    Whether a file is a table of results of this package.

    Args:
        file (`pathlib.Path`): CSV or Excel file.

    Returns:
        `bool`: False if it does not exist, or was written by something else.
    """
    from ..reporting.csv_files import HEADER
    from ..reporting.tables import CREATOR

    try:
        if file.suffix.lower() == ".csv":
            with open(file, encoding="utf-8-sig", errors="replace") as text:
                return text.readline().startswith(HEADER)
        with zipfile.ZipFile(file) as book:
            return CREATOR.encode() in book.read("docProps/core.xml")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return False


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
    from ..reporting.sorting import sort_photos
    from ..reporting.unsure import folders_of
    from ..utils.extras import is_installed

    folders: dict[int, Any] = folders_of(found, rule)
    if not is_installed("tqdm"):  # with the runtime without torch
        return sort_photos(found, output, folders, link=link)
    from tqdm.auto import tqdm

    with tqdm(total=len(folders), desc="sorting", unit="photo", disable=not shows_progress()) as bar:
        return sort_photos(found, output, folders, link=link, on_photo=lambda: bar.update())


__all__ = ["ResultFiles", "check_result_file", "is_own_table", "only_writer", "sort_into_folders", "write_tables"]
