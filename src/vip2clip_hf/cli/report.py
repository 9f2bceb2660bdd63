"""`vip2clip report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.extras import require
from ..utils.text import counted
from .options import Json, one_of, print_json, shows_progress, usage_error
from .result_files import check_result_file
from .streams import say, say_error


Link = Annotated[
    str,
    typer.Option(
        help="Link sorted photos instead of copying them: no, hard or symbolic.",
        callback=one_of("--link", "no", "hard", "symbolic"),
    ),
]


def report(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="Folder of vip2clip predict --output or vip2clip watch, or a CSV file of vip2clip predict --csv.",
        ),
    ],
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report to this HTML file.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this CSV file.")] = None,
    xlsx: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this Excel file.")] = None,
    sort_into: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Copy the photos to FOLDER/normal and FOLDER/anomalous, and unreadable ones to FOLDER/unreadable.",
        ),
    ] = None,
    link: Link = "no",
    photos: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the photos.", show_default="folder that was predicted"),
    ] = None,
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of the heatmaps or maps.", show_default="heatmaps or maps in PREDICTIONS"
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Show pictures of at most this number of photos, those with the highest scores.")
    ] = 1000,
    rows: Annotated[
        int, typer.Option(min=0, help="List at most this number of photos, those with the highest scores.")
    ] = 10_000,
    title: Annotated[
        str | None, typer.Option(help="Heading of the report.", show_default="name of the folder of photos")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    as_json: Json = False,
) -> None:
    """Show results as one HTML page, or as a table.

    The page contains pictures, histogram, table, filters and settings. It needs no other files and no network, so it
    can be sent by e-mail and printed. Photos are never changed or moved.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 some photos were not found.

    \b
    Examples:
      vip2clip predict photos --output predictions --maps
      vip2clip report predictions --output report.html
      vip2clip report predictions --xlsx results.xlsx --sort-into sorted
    """
    if output is None and csv is None and xlsx is None and sort_into is None:
        raise usage_error("Pass at least one of --output, --csv, --xlsx and --sort-into.")
    if link != "no" and sort_into is None:
        raise usage_error("--link can only be used with --sort-into.")
    for option, file, endings in (
        ("--output", output, (".html", ".htm")), ("--csv", csv, (".csv",)), ("--xlsx", xlsx, (".xlsx",))
    ):  # fmt: skip
        check_result_file(option, file, endings, overwrite, [predictions])
    if output is not None:
        require("report", "A report", "jinja2")
    if xlsx is not None:
        require("report", "An Excel file", "openpyxl")
    from ..reporting.reading import read_predictions

    found = read_predictions(predictions, photos, heatmaps)
    result: dict[str, Any] = {
        "num_images": len(found.rows),
        "num_normal": found.count(found.labels[0]),
        "num_anomalous": found.count(found.labels[1]),
        "num_unreadable": found.count(None),
    }
    missing: dict[str, str] = {}
    if output is not None:
        result["report"] = {"file": str(output), **_write_page(found, output, pictures, rows, title)}
    from .result_files import write_tables

    result.update(write_tables(found, csv, xlsx))
    if sort_into is not None:
        from .result_files import sort_into_folders

        sorted_photos = sort_into_folders(found, sort_into, None, None if link == "no" else link)
        result["sorted"] = {"folder": str(sort_into), **sorted_photos.counts}
        missing = sorted_photos.missing
        result["missing"] = missing
    if as_json:
        print_json(result)
    else:
        _print(result)
    if missing:
        say_error(f"Not found: {counted(len(missing), 'photo')}. The first: {next(iter(missing.values()))}")
        raise typer.Exit(3)


def _write_page(found: Any, output: Path, pictures: int, rows: int, title: str | None) -> dict[str, int]:
    from tqdm.auto import tqdm

    from ..reporting.page import write_report

    total = min(len(found.readable), pictures, rows)
    with tqdm(total=total, desc="pictures", unit="photo", disable=not shows_progress()) as bar:
        return write_report(
            found, output, num_pictures=pictures, num_rows=rows, title=title, on_picture=lambda: bar.update()
        )


def _print(result: dict[str, Any]) -> None:
    if "report" in result:
        page = result["report"]
        counts = f"{page['num_pictures']} with pictures, {page['num_heatmaps']} with heatmaps"
        size = f"{page['num_bytes'] / 1e6:.1f} MB"
        say(f"{counted(page['num_photos'], 'photo')}, {counts}. Written to {page['file']} ({size})")
    for name in ("csv", "xlsx"):
        if name in result:
            say(f"{counted(result['num_images'], 'row')}. Written to {result[name]}")
    if "sorted" in result:
        counts = ", ".join(f"{count} {name}" for name, count in result["sorted"].items() if name != "folder")
        say(f"Sorted into {result['sorted']['folder']}: {counts or 'no photos'}")


__all__ = ["Link", "report"]
