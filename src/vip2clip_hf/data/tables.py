"""Data sets described by a file: the `meta.json` of the research codes, and tables (CSV, JSONL, Parquet)."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmarks import Benchmark
from .layouts import ANOMALOUS_NAMES, NORMAL_NAMES, SPLITS, Layout, Reading
from .listing import LAYOUT_FILE, Listing, PathResolver, stem


TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# Names of columns, the likeliest first. `label` comes late: some tables keep the kind of defect there.
COLUMN_NAMES = {
    "image": ("image", "file_name", "image_path", "img_path", "filename", "path", "file", "filepath", "image_file"),
    "mask": ("mask", "mask_file_name", "mask_path", "mask_file", "ground_truth", "segmentation", "mask_filename"),
    "label": ("anomaly", "is_anomaly", "anomalous", "is_anomalous", "label", "target", "class", "status"),
    "category": ("category", "cls_name", "object", "product", "category_name"),
    "defect": ("defect", "specie_name", "defect_type", "anomaly_type", "defect_class"),
    "split": ("split", "subset", "partition"),
    "image_id": ("image_id", "id"),
}
_SPLIT_NAMES = {"training": "train", "testing": "test"}
_NO = frozenset({*NORMAL_NAMES, "0", "no", "false", "negative"})
_YES = frozenset({*ANOMALOUS_NAMES, "1", "yes", "true", "positive"})


# meta.json


def find_meta(listing: Listing, benchmark: Benchmark | None) -> tuple[str, dict[str, dict[str, list]]] | None:
    """
    Name and content of `meta.json` directly in the folder, or of `meta_<name>.json` as VCP-CLIP writes it: that of
    the benchmark, or the only one there is.

    Raises:
        ValueError: several, of which it cannot be told which one is meant.
    """
    names = ["meta.json"] if benchmark is None else [f"meta_{benchmark.name}.json", "meta.json"]
    for name in names:
        path = listing.find_file("", name)
        if path is not None and (content := read_meta_file(listing.root / path)) is not None:
            return path, content
    if benchmark is not None:
        return None
    others = [name for name in listing.files("") if re.fullmatch(r"meta_.*\.json", name.lower())]
    found = {name: content for name in others if (content := read_meta_file(listing.root / name)) is not None}
    if len(found) > 1:
        raise ValueError(f"{str(listing.root)!r} holds several meta files: {', '.join(found)}. Name one of them.")
    return next(iter(found.items()), None)


def read_meta_file(path: Path) -> dict[str, dict[str, list]] | None:
    """Entries by split (lower case) and category; None when the file is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    by_split = {str(name).lower(): part for name, part in content.items()}
    if not any(split in by_split for split in SPLITS):
        return None
    parts = {split: by_split[split] for split in SPLITS if by_split.get(split)}
    if not all(isinstance(p, dict) and all(isinstance(e, list) for e in p.values()) for p in parts.values()):
        return None
    return parts


def meta_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    found = find_meta(listing, benchmark)
    if found is None:
        return False
    reading = Reading(listing, benchmark)
    return any(reading.category(name) is not None for part in found[1].values() for name in part)


def read_meta(reading: Reading, path: str | None = None):
    listing = reading.listing
    if path is None:
        path, content = find_meta(listing, reading.benchmark)
    else:
        content = read_meta_file(listing.root / path)
    resolve = PathResolver(listing)
    taken: dict[str, str] = {}
    for split, categories in content.items():
        for folder_name, entries in categories.items():
            category = reading.category(str(folder_name))
            if category is None:
                reading.warn("categories of the meta file that the benchmark does not have, left out", folder_name)
                continue
            before = len(reading.rows)
            for entry in entries:
                _read_meta_entry(reading, resolve, entry, category, split, taken)
            if len(reading.rows) == before:
                reading.empty.append(category)
    if resolve.rerooted:
        reading.notes.append(
            f"{resolve.rerooted} paths of {path} are those of another machine or folder; each was found below the "
            "root by its longest part at the end."
        )
    strangers = [row.image for row in reading.rows if row.mask is not None and not _belong(row.image, row.mask)]
    if strangers:
        reading.warn(f"images that {path} gives a mask of another name; it may pair by sort order", *strangers)
    listing.mark([path], LAYOUT_FILE)


def _belong(image: str, mask: str) -> bool:
    """Whether the names say that a mask is that of an image."""
    whole = rf"(?<![^\W_]){re.escape(stem(image))}(?![^\W_])"  # 1 is in 1_mask, and not in 10_mask
    return re.search(whole, stem(mask), re.IGNORECASE) is not None


def _read_meta_entry(
    reading: Reading, resolve: PathResolver, entry: Any, category: str, split: str, taken: dict[str, str]
):
    if not isinstance(entry, dict) or to_label(entry.get("anomaly")) is None:
        reading.warn("entries of the meta file without img_path and anomaly (0 or 1), left out", str(entry)[:120])
        return
    named = entry.get("img_path")
    if not named:  # a placeholder for an empty folder
        return
    image = resolve(named)
    if image is None:
        reading.warn(*resolve.refused(named))
        return
    if taken.setdefault(image, str(named)) != str(named):
        reading.warn("entries of the meta file that point to an image another entry has, left out", str(named))
        return
    label = to_label(entry["anomaly"])
    masks = find_named_mask(reading, resolve, entry.get("mask_path")) if label else []
    kind = str(entry.get("specie_name") or "")
    defect = kind if label and kind != image.rsplit("/", 1)[-1] else ""
    reading.add(image, label, category, masks, defect=defect, split=split)


def find_named_mask(reading: Reading, resolve: PathResolver, named: Any) -> list[str]:
    """The mask a file names. Empty, null and the path of a folder mean that there is none."""
    if not isinstance(named, str) or not named.strip():
        return []
    found = resolve(named)
    if found is not None:
        return [found]
    parts = resolve.parts(named)
    if parts is None:
        reading.warn("masks named by a path that leads out of the data set, left out", named)
    elif parts and "." in parts[-1]:
        reading.warn("masks that a file names but that are not there", named)
    return []


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


def choose_columns(found: Sequence[str], columns: Mapping[str, str] | None, what: str) -> dict[str, str]:
    """
    Which column holds what: those given, the others by their usual names.

    Raises:
        ValueError: a column given that is not there, a field that does not exist, or no column with images.
    """
    columns = dict(columns or {})
    for name, column in columns.items():
        if name not in COLUMN_NAMES:
            raise ValueError(f"columns has {name!r}; expected {', '.join(COLUMN_NAMES)}.")
        if column not in found:
            raise ValueError(f"{what} has no column {column!r} for {name!r}; it has {', '.join(map(str, found))}.")
    there = {str(column).strip().lower(): column for column in found}
    for name, usual in COLUMN_NAMES.items():
        free = [there[u] for u in usual if u in there and there[u] not in columns.values()]
        if name not in columns and free:
            columns[name] = free[0]
    if "image" not in columns:
        raise ValueError(
            f"{what} has the columns {', '.join(map(str, found)) or 'none'}; expected one with images, such as "
            "'image' or 'file_name', or say which it is with columns={'image': ...}."
        )
    if "defect" not in columns and "label" in columns and "label" in there and columns["label"] != there["label"]:
        columns["defect"] = there["label"]  # a table with `anomaly` 0 or 1 and the kind of defect in `label`
    return columns


def to_label(value: Any) -> int | None:
    """0 or 1 from a number, a truth value or a usual word; None from anything else."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)):
        return int(value) if value in (0, 1) else None
    word = str(value).strip().lower()
    word = word[:-2] if word.endswith(".0") else word
    return 0 if word in _NO else 1 if word in _YES else None


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""


def to_labels(values: Sequence[Any], normal_labels: Sequence[str] | None, what: str) -> tuple[list, list[str], str]:
    """
    Labels of a column: 0, 1, or None where there is none.

    Numbers, truth values and usual words (good, ok, normal, bad, defect, ...) are known. Where some are words for
    normal and others are not known, the others are kinds of defects. `normal_labels` says which values are normal; all
    others then are not.

    Returns:
        `tuple`: labels, kinds of defects (empty where not known), and how the values were read, in words.

    Raises:
        ValueError: values of which it cannot be told what they mean.
    """
    words = [None if is_missing(value) else str(value).strip() for value in values]
    if normal_labels is not None:
        normal = {str(label).strip().lower() for label in normal_labels}
        meaning = {word: int(word.lower() not in normal) for word in words if word is not None}
        if meaning and all(meaning.values()):
            raise ValueError(
                f"{what}: none of the values {_shown(meaning)} is among normal_labels={list(normal_labels)!r}."
            )
    else:
        meaning = {word: to_label(value) for word, value in zip(words, values) if word is not None}
        unknown = [word for word, label in meaning.items() if label is None]
        numeric = [word for word in unknown if word.replace(".", "", 1).lstrip("-").isdigit()]
        if unknown and (numeric or not any(label == 0 for label in meaning.values())):
            raise ValueError(
                f"{what} has the values {_shown(meaning)}, of which {_shown(unknown)} cannot be understood; expected "
                "0 and 1, or words such as good and bad. Say with normal_labels=[...] which ones are normal."
            )
        meaning = {word: 1 if label is None else label for word, label in meaning.items()}
    plain = {"0", "1", "0.0", "1.0", "true", "false"}
    kinds = ["" if w is None or not meaning[w] or w.lower() in plain | ANOMALOUS_NAMES else w for w in words]
    read = "; ".join(
        f"{name}: {_shown([word for word, label in meaning.items() if label == value])}"
        for value, name in enumerate(("normal", "anomalous"))
        if any(label == value for label in meaning.values())
    )
    return [None if word is None else meaning[word] for word in words], kinds, read


def _shown(words) -> str:
    words = list(words)
    return ", ".join(map(repr, words[:8])) + (", ..." if len(words) > 8 else "")


def to_split(value: Any) -> str:
    name = "" if is_missing(value) else str(value).strip().lower()
    return _SPLIT_NAMES.get(name, name) or "test"


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


META_LAYOUT = Layout("meta", "meta.json of the research codes", meta_matches, read_meta, "meta.json")
# Read by `read_table`, which has to be told about columns.
TABLE_LAYOUT = Layout(
    "table", "table (CSV, TSV, JSONL or Parquet)", table_matches, None, "a table with a column image or file_name"
)


__all__ = [
    "COLUMN_NAMES",
    "META_LAYOUT",
    "TABLE_EXTENSIONS",
    "TABLE_LAYOUT",
    "choose_columns",
    "find_table",
    "is_missing",
    "metadata_file",
    "read_meta",
    "read_meta_file",
    "read_table",
    "read_table_file",
    "to_labels",
    "to_split",
]
