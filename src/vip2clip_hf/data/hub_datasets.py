"""Index datasets that contain the image data: Hub datasets and Parquet files."""

import atexit
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..utils.cache import cache_folders, can_write, datasets_cache
from ..utils.extras import extra
from .index import COLUMNS, DataIndex, check_categories, check_split, features
from .layouts.base import Layout, Reading, Row
from .layouts.columns import choose_columns, describe_labels, is_missing, to_labels, to_split
from .layouts.hub import HUB
from .listing import Listing


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)


def read_parquet_images(path: Path, columns: Mapping[str, str] | None) -> "Dataset | None":
    """
    Open a Parquet file that contains image data.

    Args:
        path (`pathlib.Path`): Parquet file.
        columns (`Mapping[str, str]`, *optional*): column names by field, see [`choose_columns`].

    Returns:
        `datasets.Dataset`: one row per image. None if the image column contains paths.

    Raises:
        ImportError: if `datasets` or `pyarrow` is not installed.
        ValueError: if the file is not a valid Parquet file or has no image column.
    """
    with extra("data", "Reading a Parquet file"):
        import datasets
        import pyarrow as pa
        import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r} is not a valid Parquet file ({error}).") from error
    column = choose_columns(schema.names, columns, str(path))["image"]
    if pa.types.is_string(schema.field(column).type) or pa.types.is_large_string(schema.field(column).type):
        return None
    dataset = datasets.Dataset.from_parquet(str(path), cache_dir=_cache_folder(str(path)))
    return dataset.cast_column(column, datasets.Image())


def _cache_folder(path: str) -> str | None:
    """Folder for the converted copy of a Parquet file: None for that of `datasets`, if it can be written, or else a
    temporary one, which is deleted at the end of the program."""
    cache = datasets_cache()
    if can_write(cache):
        return None
    logger.warning_once(
        f"The cache folder {cache!r} cannot be written, so {path!r} is converted into a temporary folder, again in "
        "each run; to keep the converted copy, set HF_HOME to a folder that can be written."
    )
    folder = tempfile.mkdtemp(prefix="vip2clip-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_hub_id(root: str | os.PathLike) -> bool:
    """Whether a string has the form `owner/name`."""
    return isinstance(root, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", root) is not None


def index_hub(
    hub_id: str,
    split: str,
    categories: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    normal_labels: Sequence[str] | None,
    anomalous_labels: Sequence[str] | None,
    hub_kwargs: Mapping[str, Any],
) -> DataIndex:
    """
    Load a Hub dataset and index it.

    Args:
        hub_id (`str`): id of the dataset, `owner/name`.
        split, categories, columns, normal_labels, anomalous_labels, hub_kwargs: see [`load_folder`].

    Raises:
        ImportError: if `datasets` is not installed.
        OSError: if the dataset cannot be loaded.
        ValueError: if the split or configuration is unknown, see also [`index_dataset`].
    """
    with extra("data", "Reading a dataset"):
        import datasets

    try:
        dataset = datasets.load_dataset(hub_id, split=split, **hub_kwargs)
    except ValueError as error:  # an unknown split or configuration
        raise ValueError(f"Dataset {hub_id!r} could not be loaded with split {split!r}: {error}") from error
    except (OSError, RuntimeError) as error:
        unwritable = [folder for folder in cache_folders() if not can_write(folder)]
        if unwritable:
            raise OSError(
                f"Hub dataset {hub_id!r} could not be loaded, because the cache folder {unwritable[0]!r} cannot be "
                "written; set HF_HOME to a folder that can be written."
            ) from error
        raise OSError(
            f"{hub_id!r} is not a folder on this machine and could not be loaded as a Hub dataset: {error}"
        ) from error
    name = hub_id.rsplit("/", 1)[-1]
    return index_dataset(
        dataset, hub_id, HUB, split, categories, columns, normal_labels, anomalous_labels, default_category=name
    )


def index_dataset(
    dataset: "Dataset",
    root: str,
    layout: Layout,
    split: str,
    categories: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    normal_labels: Sequence[str] | None,
    anomalous_labels: Sequence[str] | None,
    default_category: str,
) -> DataIndex:
    """
    Convert a dataset to the columns of [`features`]. No image is decoded.

    Args:
        dataset (`datasets.Dataset`): dataset with an image column.
        root (`str`): Hub id or path of the dataset.
        layout (`Layout`): `HUB` or `TABLE`. With `HUB`, all rows belong to `split`.
        split, categories, columns, normal_labels, anomalous_labels: see [`load_folder`].
        default_category (`str`): category of rows without a category.

    Returns:
        `DataIndex`: index with `source` set to the converted dataset.

    Raises:
        ValueError: if a column is missing or has the wrong type, or if a label, category or split is unknown.
    """
    with extra("data", "Reading a dataset"):
        import datasets

    chosen = choose_columns(dataset.column_names, columns, root)
    if not isinstance(dataset.features[chosen["image"]], datasets.Image):
        raise _wrong_type(dataset, root, chosen["image"])
    if "mask" in chosen and not isinstance(dataset.features[chosen["mask"]], datasets.Image):
        if columns and "mask" in columns:
            raise _wrong_type(dataset, root, chosen["mask"])
        del chosen["mask"]
    reading = Reading(Listing(Path()))

    def values(name: str) -> list[Any]:
        if name not in chosen:
            return [None] * len(dataset)
        feature = dataset.features[chosen[name]]
        found = dataset.select_columns([chosen[name]]).with_format("arrow")[:][chosen[name]].to_pylist()
        if isinstance(feature, datasets.ClassLabel):
            found = [None if value is None else feature.int2str(value) for value in found]
        return found

    labels: list[int | None] = [None] * len(dataset)
    defect_types = [""] * len(dataset)
    if "label" in chosen:
        found_labels = to_labels(values("label"), normal_labels, anomalous_labels, chosen["label"], root)
        labels, defect_types = found_labels.labels, found_labels.defects
        for kind, found in found_labels.warnings.items():
            reading.warn(kind, *map(repr, found))
        reading.notes.append(describe_labels(chosen["label"], found_labels.meaning))
    images = dataset.select_columns([chosen[name] for name in ("image", "mask") if name in chosen])
    raw = images.with_format("arrow")[:]
    masked = raw[chosen["mask"]].is_valid().to_pylist() if "mask" in chosen else [False] * len(dataset)
    rows = []
    for number, (label, defect_type, category, defect, name, part) in enumerate(
        zip(labels, defect_types, values("category"), values("defect"), values("image_id"), values("split"))
    ):
        rows.append(
            Row(
                image=str(number) if is_missing(name) else str(name),
                label=label,
                category=default_category if is_missing(category) else str(category).strip(),
                mask="stored" if masked[number] else None,
                defect=str(defect).strip() if label == 1 and not is_missing(defect) else defect_type,
                split=split if layout is HUB else to_split(part),
            )
        )
    reading.rows = rows
    splits = dict(Counter(row.split for row in rows))
    check_split(split, splits, "split" in chosen, root)
    names = list(dict.fromkeys(row.category for row in rows if row.split == split))
    selected = set(names) if categories is None else check_categories(categories, names, root)
    kept = [i for i, row in enumerate(rows) if row.split == split and row.category in selected]

    data = images.rename_columns({chosen[name]: name for name in ("image", "mask") if name in chosen}).select(kept)
    rows = [rows[i] for i in kept]
    attributes = {"label": "label", "category": "category", "defect": "defect", "image_id": "image"}
    for name in COLUMNS:
        if name not in data.column_names:
            column = [None] * len(rows) if name == "mask" else [getattr(row, attributes[name]) for row in rows]
            data = data.add_column(name, column, feature=features()[name])
    data = data.select_columns(list(COLUMNS)).cast(features())
    return DataIndex(root, layout, split, rows, splits, reading, source=data)


def _wrong_type(dataset: "Dataset", root: str, column: str) -> ValueError:
    return ValueError(f"Column {column!r} of {root!r} has the type {dataset.features[column]}; expected Image.")


__all__ = ["index_dataset", "index_hub", "is_hub_id", "read_parquet_images"]
