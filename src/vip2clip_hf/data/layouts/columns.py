"""Columns of tables and Hub datasets: column names and label values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .base import ANOMALOUS_NAMES, NORMAL_NAMES


# Usual column names, the most likely first. `label` comes late because some tables use it for the defect type.
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


def choose_columns(found: Sequence[str], columns: Mapping[str, str] | None, what: str) -> dict[str, str]:
    """
    Find the column of each field.

    Args:
        found (`Sequence[str]`): column names of the dataset.
        columns (`Mapping[str, str]`, *optional*): column names by field, from the user. All other fields are found by
            their usual column names.
        what (`str`): path or id of the dataset, for error messages.

    Returns:
        `dict[str, str]`: column names by field. Contains at least `"image"`.

    Raises:
        ValueError: if `columns` has an unknown field or column, or if there is no image column.
    """
    columns = dict(columns or {})
    for name, column in columns.items():
        if name not in COLUMN_NAMES:
            raise ValueError(f"columns has the field {name!r}; expected some of {', '.join(COLUMN_NAMES)}.")
        if column not in found:
            raise ValueError(
                f"{what!r} has no column {column!r} for {name!r}; expected one of {', '.join(map(str, found))}."
            )
    by_name = {str(column).strip().lower(): column for column in found}
    for name, usual in COLUMN_NAMES.items():
        free = [by_name[u] for u in usual if u in by_name and by_name[u] not in columns.values()]
        if name not in columns and free:
            columns[name] = free[0]
    if "image" not in columns:
        raise ValueError(
            f"{what!r} has the columns {', '.join(map(str, found)) or 'none'}; expected an image column such as "
            "'image' or 'file_name'. Set it with columns={'image': ...}."
        )
    if "defect" not in columns and "label" in columns and "label" in by_name and columns["label"] != by_name["label"]:
        columns["defect"] = by_name["label"]  # a table with `anomaly` 0 or 1 and the defect type in `label`
    return columns


def to_label(value: Any) -> int | None:
    """Convert a number, boolean or usual word to the label 0 or 1. None if the meaning is unknown."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)):
        return int(value) if value in (0, 1) else None
    word = str(value).strip().lower()
    word = word[:-2] if word.endswith(".0") else word
    return 0 if word in _NO else 1 if word in _YES else None


def is_missing(value: Any) -> bool:
    """Whether a cell is null, NaN or blank."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""


def to_labels(
    values: Sequence[Any], normal_labels: Sequence[str] | None, what: str
) -> tuple[list[int | None], list[str], str]:
    """
    Convert the values of a label column.

    0 and 1, booleans and usual words (good, ok, normal, bad, defect, ...) are known. If some values mean normal, all
    unknown words are taken as defect types.

    Args:
        values (`Sequence[Any]`): values of the column.
        normal_labels (`Sequence[str]`, *optional*): values that mean normal. All other values then mean anomalous.
        what (`str`): name of the column, for error messages.

    Returns:
        `tuple[list[int | None], list[str], str]`: labels (0, 1, or None for missing values), defect types (empty if
        unknown), and a description of the meaning of each value.

    Raises:
        ValueError: if the meaning of a value is unknown or no value is in `normal_labels`.
    """
    meaning: dict[str, int]
    words = [None if is_missing(value) else str(value).strip() for value in values]
    if normal_labels is not None:
        normal = {str(label).strip().lower() for label in normal_labels}
        meaning = {word: int(word.lower() not in normal) for word in words if word is not None}
        if meaning and all(meaning.values()):
            raise ValueError(
                f"{what} has the values {list_values(meaning)}; expected at least one of "
                f"normal_labels={list(normal_labels)!r}."
            )
    else:
        known = {word: to_label(value) for word, value in zip(words, values) if word is not None}
        unknown = [word for word, label in known.items() if label is None]
        numeric = [word for word in unknown if word.replace(".", "", 1).lstrip("-").isdigit()]
        if unknown and (numeric or not any(label == 0 for label in known.values())):
            raise ValueError(
                f"{what} has the values {list_values(known)}, and the meaning of {list_values(unknown)} is unknown; "
                "expected 0 and 1, or words such as good and bad. Set the normal values with normal_labels=[...]."
            )
        meaning = {word: 1 if label is None else label for word, label in known.items()}
    plain = {"0", "1", "0.0", "1.0", "true", "false"}
    defect_types = ["" if w is None or not meaning[w] or w.lower() in plain | ANOMALOUS_NAMES else w for w in words]
    description = "; ".join(
        f"{name}: {list_values([word for word, label in meaning.items() if label == value])}"
        for value, name in enumerate(("normal", "anomalous"))
        if any(label == value for label in meaning.values())
    )
    return [None if word is None else meaning[word] for word in words], defect_types, description


def describe_labels(column: str, meaning: str) -> str:
    """Note for the report on how the labels of a column were read."""
    return f"Labels come from the column {column!r} ({meaning or 'all values are empty'})."


def list_values(values: Iterable[str]) -> str:
    """The first 8 values, for messages."""
    words = list(values)
    return ", ".join(map(repr, words[:8])) + (", ..." if len(words) > 8 else "")


def to_split(value: Any) -> str:
    """Name of a split in lower case. Defaults to "test" if the cell is missing."""
    name = "" if is_missing(value) else str(value).strip().lower()
    return _SPLIT_NAMES.get(name, name) or "test"


__all__ = ["COLUMN_NAMES", "choose_columns", "describe_labels", "is_missing", "to_label", "to_labels", "to_split"]
