"""Tables of image paths: CSV, TSV, JSONL and Parquet."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.extras import extra
from ..benchmarks.benchmark import Benchmark
from ..listing import LAYOUT_FILE, Listing
from .base import Layout, Reading
from .columns import choose_columns, is_missing, to_labels, to_split
from .paths import PathResolver, find_named_mask


TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


# Tables


def metadata_file(listing: Listing) -> str | None:
    """`metadata.csv`, `.jsonl` or `.parquet`, the convention of `datasets` for folders of images."""
    return listing.find_file("", *(f"metadata{extension}" for extension in TABLE_EXTENSIONS))


def find_table(listing: Listing) -> str:
    if (found := metadata_file(listing)) is not None:
        return found
    tables = [name for name in listing.files("") if os.path.splitext(name)[1].lower() in TABLE_EXTENSIONS]
    if len(tables) != 1:
        raise ValueError(
            f"{str(listing.root)!r} holds {len(tables)} tables ({', '.join(tables) or 'none'}); name one of them."
        )
    return tables[0]


def table_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    try:
        table = listing.root / find_table(listing)
        choose_columns(list(read_table_file(table, head=True)), None, str(table))
    except (OSError, ValueError):
        return False
    return True


def read_table_file(path: Path, head: bool = False) -> dict[str, list]:
    """
    A CSV, TSV, JSONL or Parquet file as columns; with `head` only their names and perhaps a first line.

    Raises:
        OSError: it cannot be read. ValueError: it is damaged or not a table.
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
            raise ValueError(f"{path} is no Parquet file ({error}).") from error
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if head:  # a CSV file of a header and one line, so that a table without lines has columns as well
                first = [line for line in (file.readline(), file.readline()) if line.strip()]
                if extension in (".jsonl", ".ndjson"):
                    first = first[:1]
                file = io.StringIO("".join(first))
            lines = _read_json_lines(file, path) if extension in (".jsonl", ".ndjson") else _read_csv(file, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not encoded in UTF-8 ({error.reason}); save it as UTF-8.") from error
    names = list(dict.fromkeys(name for line in lines for name in line))
    return {name: [line.get(name) for line in lines] for name in names}


def _read_csv(file, path: Path) -> list[dict[str, str]]:
    head = file.readline()
    file.seek(0)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    try:
        table = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        lines = []
        for line in table:
            if None in line or None in line.values():
                raise ValueError(
                    f"{path}, line {table.line_num}: {len(table.fieldnames)} columns expected, found another number."
                )
            lines.append({name.strip(): value for name, value in line.items()})
        return lines
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file ({error}).") from error


def _read_json_lines(file, path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error.msg}); expected one object a line.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}, line {number}: found {type(content).__name__}; expected one object a line.")
        lines.append(content)
    return lines


def read_table(reading: Reading, table: str, columns: Mapping[str, str] | None, normal_labels: Sequence[str] | None):
    """Rows of a table of paths, relative to the folder of the table."""
    listing, path = reading.listing, reading.listing.root / table
    content = read_table_file(path)
    listing.mark([table], LAYOUT_FILE)
    chosen = choose_columns(list(content), columns, str(path))
    count = len(content[chosen["image"]])
    resolve = PathResolver(listing, table.rpartition("/")[0])
    labels, kinds = [None] * count, [""] * count
    if "label" in chosen:
        labels, kinds, read = to_labels(
            content[chosen["label"]], normal_labels, f"Column {chosen['label']!r} of {path}"
        )
        reading.notes.append(f"Labels are read from the column {chosen['label']!r} ({read or 'all empty'}).")
    reading.has_splits = "split" in chosen
    default_category = path.absolute().parent.name

    def column(name: str) -> list:
        return content[chosen[name]] if name in chosen else [None] * count

    taken: set[str] = set()
    for image, mask, label, kind, category, defect, split in zip(
        column("image"), column("mask"), labels, kinds, column("category"), column("defect"), column("split")
    ):
        if is_missing(image) or not isinstance(image, str):
            reading.warn("lines of the table without an image, left out", repr(image))
            continue
        found = resolve(image)
        if found is None:
            reading.warn(*resolve.refused(image))
            continue
        if found in taken:
            reading.warn("lines of the table with an image another line has, left out", image)
            continue
        taken.add(found)
        kind = str(defect).strip() if not is_missing(defect) and label == 1 else kind
        reading.add(
            found, label, default_category if is_missing(category) else str(category).strip(),
            find_named_mask(reading, resolve, mask), defect=kind, split=to_split(split),
        )  # fmt: skip
    if resolve.rerooted:
        reading.notes.append(f"{resolve.rerooted} paths of {path.name} were found below the root by their end.")


# Read by `read_table`, which has to be told about columns.
TABLE = Layout(
    name="table",
    title="table (CSV, TSV, JSONL or Parquet)",
    matches=table_matches,
    read=None,
    expected="a table with a column image or file_name",
)


__all__ = ["TABLE", "TABLE_EXTENSIONS", "find_table", "metadata_file", "read_table", "read_table_file"]
