"""Tables of image paths: CSV, TSV, JSONL and Parquet."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ...utils.extras import extra
from ..listing import LAYOUT_FILE, Listing
from .base import Layout, Reading
from .columns import choose_columns, describe_labels, is_missing, to_labels, to_split
from .paths import PathResolver, find_listed_mask


TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def metadata_file(listing: Listing) -> str | None:
    """Name of `metadata.csv`, `.jsonl` or `.parquet`, the convention of `datasets` for image folders, or None."""
    return listing.find_file("", *(f"metadata{extension}" for extension in TABLE_EXTENSIONS))


def find_tables(listing: Listing) -> list[str]:
    """Names of the tables directly in a folder."""
    return [name for name in listing.files("") if os.path.splitext(name)[1].lower() in TABLE_EXTENSIONS]


def find_table(listing: Listing) -> str:
    """
    Name of the table in a folder: `metadata.*`, or the only table.

    Raises:
        ValueError: if there is no table or more than one.
    """
    if (found := metadata_file(listing)) is not None:
        return found
    tables = find_tables(listing)
    if len(tables) != 1:
        found_text = f"several tables ({', '.join(tables)})" if tables else "no table"
        raise ValueError(f"Folder {str(listing.root)!r} contains {found_text}; expected one, or the path of a table.")
    return tables[0]


def table_matches(reading: Reading) -> bool:
    return find_tables(reading.listing) != [] and why_not_used(reading.listing) is None


def why_not_used(listing: Listing) -> str | None:
    """Reason why the tables directly in a folder cannot be used. None if there is a usable table or none at all."""
    try:
        if find_tables(listing):
            table = listing.root / find_table(listing)
            choose_columns(list(read_table_file(table, head=True)), None, str(table))
    except (OSError, ValueError, ImportError) as error:
        return str(error)
    return None


def read_table_file(path: Path, head: bool = False) -> dict[str, list[Any]]:
    """
    Read the columns of a CSV, TSV, JSONL or Parquet file.

    Args:
        path (`pathlib.Path`): file to read.
        head (`bool`, defaults to `False`): whether to read only the column names. The values are then incomplete.

    Returns:
        `dict[str, list]`: values by column name.

    Raises:
        ImportError: if the file is a Parquet file and `pyarrow` is not installed.
        OSError: if the file cannot be read.
        ValueError: if the file is not a valid table.
    """
    extension = path.suffix.lower()
    if extension == ".parquet":
        with extra("data", "Reading a Parquet file"):
            import pyarrow.parquet

        try:
            if head:
                return {name: [] for name in pyarrow.parquet.read_schema(path).names}
            return pyarrow.parquet.read_table(path).to_pydict()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{str(path)!r} is not a valid Parquet file ({error}).") from error
    is_json = extension in (".jsonl", ".ndjson")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            source: TextIO = file
            if head:  # the first row has the column names, in CSV the header and the first row
                lines = [line for line in (file.readline(), file.readline()) if line.strip()]
                source = io.StringIO("".join(lines[:1] if is_json else lines))
            rows = _read_json_lines(source, path) if is_json else _read_csv(source, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not encoded as UTF-8 ({error.reason}); save it as UTF-8.") from error
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_csv(file: TextIO, path: Path) -> list[dict[str, Any]]:
    header = file.readline()
    file.seek(0)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    try:
        table = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        rows = []
        for row in table:
            if None in row or None in row.values():  # too many or too few values
                raise ValueError(
                    f"{str(path)!r}, line {table.line_num}: wrong number of values; expected "
                    f"{len(table.fieldnames or ())}, one for each column of the header."
                )
            rows.append({name.strip(): value for name, value in row.items()})
        return rows
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is not a valid CSV file ({error}).") from error


def _read_json_lines(file: TextIO, path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{str(path)!r}, line {number}: invalid JSON ({error.msg}); expected one object per line."
            ) from error
        if not isinstance(content, dict):
            raise ValueError(
                f"{str(path)!r}, line {number}: found {type(content).__name__}; expected one object per line."
            )
        rows.append(content)
    return rows


def read_table(
    reading: Reading,
    table: str,
    columns: Mapping[str, str] | None,
    normal_labels: Sequence[str] | None,
    anomalous_labels: Sequence[str] | None = None,
) -> None:
    """
    Read the images listed in a table. Paths are relative to the folder of the table.

    Args:
        reading (`Reading`): receives the rows.
        table (`str`): path of the table below the data root.
        columns (`Mapping[str, str]`, *optional*): column names by field, see [`choose_columns`].
        normal_labels, anomalous_labels (`Sequence[str]`, *optional*): labels that mean normal and anomalous, see
            [`to_labels`].

    Raises:
        ImportError: if the table is a Parquet file and `pyarrow` is not installed.
        OSError: if the table cannot be read.
        ValueError: if the table is invalid, or if its columns or labels are unknown.
    """
    listing, path = reading.listing, reading.listing.root / table
    content = read_table_file(path)
    listing.mark([table], LAYOUT_FILE)
    chosen = choose_columns(list(content), columns, str(path))
    count = len(content[chosen["image"]])
    resolve = PathResolver(listing, table.rpartition("/")[0])
    labels: list[int | None] = [None] * count
    defect_types = [""] * count
    if "label" in chosen:
        found_labels = to_labels(content[chosen["label"]], normal_labels, anomalous_labels, chosen["label"], str(path))
        labels, defect_types = found_labels.labels, found_labels.defects
        for kind, values in found_labels.warnings.items():
            reading.warn(kind, *map(repr, values))
        reading.notes.append(describe_labels(chosen["label"], found_labels.meaning))
    else:
        if normal_labels is not None or anomalous_labels is not None:
            raise ValueError(
                f"{str(path)!r} has no label column for normal_labels and anomalous_labels; expected one such as "
                f"'label'. Its columns are {', '.join(map(str, content))}; set one with columns={{'label': ...}}."
            )
        reading.notes.append(
            f"The images have no labels, because {path.name} has no label column (columns: {', '.join(content)})."
        )
    reading.has_splits = "split" in chosen
    default_category = path.absolute().parent.name

    def column(name: str) -> list[Any]:
        return content[chosen[name]] if name in chosen else [None] * count

    taken: dict[str, int | None] = {}
    for image, mask, label, defect_type, category, defect, split in zip(
        column("image"), column("mask"), labels, defect_types, column("category"), column("defect"), column("split")
    ):
        if is_missing(image) or not isinstance(image, str):
            reading.warn("table rows without an image, left out", repr(image))
            continue
        found = resolve(image)
        if found is None:
            reading.warn(resolve.problem(image), image)
            continue
        if found in taken:
            if label is not None and taken[found] is not None and label != taken[found]:
                raise ValueError(
                    f"{path.name!r} has rows with different labels for {image!r}; expected one label per image. "
                    "Remove or correct one of the rows."
                )
            reading.warn("table rows for an image that another row already has, left out", image)
            continue
        taken[found] = label
        reading.add(
            found,
            label,
            default_category if is_missing(category) else str(category).strip(),
            find_listed_mask(reading, resolve, mask),
            defect=str(defect).strip() if not is_missing(defect) and label == 1 else defect_type,
            split=to_split(split),
        )
    resolve.add_note(reading, path.name)


def read_only_table(reading: Reading) -> None:
    """Read the table of a folder, with the usual column names and labels."""
    read_table(reading, find_table(reading.listing), None, None)


TABLE = Layout(
    name="table",
    title="table (CSV, TSV, JSONL or Parquet)",
    matches=table_matches,
    read=read_only_table,
    expected="a table with an image column such as image or file_name",
)


__all__ = ["TABLE", "TABLE_EXTENSIONS", "find_table", "metadata_file", "read_table", "read_table_file", "why_not_used"]
