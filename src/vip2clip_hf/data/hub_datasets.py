"""Data sets that hold their images themselves: those of the Hub, and Parquet files."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.extras import extra
from .index import COLUMNS, DataIndex, check_categories, check_split, features
from .layouts.base import Layout, Reading, Row
from .layouts.columns import choose_columns, is_missing, to_labels, to_split
from .layouts.hub import HUB
from .listing import Listing


if TYPE_CHECKING:
    from datasets import Dataset


def with_images_inside(path: Path, columns: Mapping[str, str] | None) -> "Dataset | None":
    """A Parquet file whose images are stored in it."""
    with extra("data", "Reading a Parquet file"):
        import datasets
        import pyarrow as pa
        import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r} is no Parquet file ({error}).") from error
    column = choose_columns(schema.names, columns, str(path))["image"]
    if pa.types.is_string(schema.field(column).type) or pa.types.is_large_string(schema.field(column).type):
        return None
    dataset = datasets.Dataset.from_parquet(str(path))
    return dataset.cast_column(column, datasets.Image())


def is_hub_id(root: str | os.PathLike) -> bool:
    return isinstance(root, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", root) is not None


def index_hub(
    hub_id: str,
    split: str,
    categories: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    normal_labels: Sequence[str] | None,
    hub_kwargs: Mapping[str, Any],
) -> DataIndex:
    with extra("data", "Reading a dataset"):
        import datasets

    try:
        dataset = datasets.load_dataset(hub_id, split=split, **hub_kwargs)
    except ValueError as error:  # an unknown split or configuration
        raise ValueError(f"Data set {hub_id!r} could not be loaded with split {split!r}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{hub_id!r}: there is no such folder on this machine, and as a data set of the Hub it could not be "
            f"loaded: {error}"
        ) from error
    return index_dataset(dataset, hub_id, HUB, split, categories, columns, normal_labels, hub_id.rsplit("/", 1)[-1])


def index_dataset(
    dataset: "Dataset",
    root: str,
    layout: Layout,
    split: str,
    categories: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    normal_labels: Sequence[str] | None,
    default_category: str,
) -> DataIndex:
    """A data set of any schema in ours. Images stay as they are stored, none is decoded."""
    with extra("data", "Reading a dataset"):
        import datasets

    chosen = choose_columns(dataset.column_names, columns, root)
    if not isinstance(dataset.features[chosen["image"]], datasets.Image):
        raise ValueError(
            f"Column {chosen['image']!r} of {root!r} has the type {dataset.features[chosen['image']]}; expected Image."
        )
    if "mask" in chosen and not isinstance(dataset.features[chosen["mask"]], datasets.Image):
        if columns and "mask" in columns:
            raise ValueError(
                f"Column {chosen['mask']!r} of {root!r} has the type {dataset.features[chosen['mask']]}; expected "
                "Image."
            )
        del chosen["mask"]
    reading = Reading(Listing(Path()))

    def values(name: str) -> list:
        if name not in chosen:
            return [None] * len(dataset)
        kind = dataset.features[chosen[name]]
        found = dataset.select_columns([chosen[name]]).with_format("arrow")[:][chosen[name]].to_pylist()
        if isinstance(kind, datasets.ClassLabel):
            found = [None if value is None else kind.int2str(value) for value in found]
        return found

    labels, kinds = [None] * len(dataset), [""] * len(dataset)
    if "label" in chosen:
        labels, kinds, read = to_labels(values("label"), normal_labels, f"Column {chosen['label']!r} of {root!r}")
        reading.notes.append(f"Labels are read from the column {chosen['label']!r} ({read or 'all empty'}).")
    images = dataset.select_columns([chosen[name] for name in ("image", "mask") if name in chosen])
    raw = images.with_format("arrow")[:]
    masked = raw[chosen["mask"]].is_valid().to_pylist() if "mask" in chosen else [False] * len(dataset)
    rows = []
    for number, (label, kind, category, defect, name, part) in enumerate(
        zip(labels, kinds, values("category"), values("defect"), values("image_id"), values("split"))
    ):
        rows.append(
            Row(
                image=str(number) if is_missing(name) else str(name),
                label=label,
                category=default_category if is_missing(category) else str(category).strip(),
                mask="stored" if masked[number] else None,
                defect=str(defect).strip() if label == 1 and not is_missing(defect) else kind,
                split=split if layout is HUB else to_split(part),
            )
        )
    reading.rows = rows
    splits = dict(Counter(row.split for row in rows))
    check_split(split, splits, "split" in chosen, root)
    names = list(dict.fromkeys(row.category for row in rows if row.split == split))
    wanted = set(names) if categories is None else check_categories(categories, names, root)
    kept = [i for i, row in enumerate(rows) if row.split == split and row.category in wanted]

    data = images.rename_columns({chosen[name]: name for name in ("image", "mask") if name in chosen}).select(kept)
    rows = [rows[i] for i in kept]
    added = {"label": "label", "category": "category", "defect": "defect", "image_id": "image"}
    for name in COLUMNS:
        if name not in data.column_names:
            column = [None] * len(rows) if name == "mask" else [getattr(row, added[name]) for row in rows]
            data = data.add_column(name, column, feature=features()[name])
    data = data.select_columns(list(COLUMNS)).cast(features())
    return DataIndex(root, layout, split, rows, splits, reading, source=data)


__all__ = ["index_dataset", "index_hub", "is_hub_id", "with_images_inside"]
