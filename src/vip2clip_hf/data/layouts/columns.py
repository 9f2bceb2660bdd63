"""Columns of tables and Hub datasets: which column is which, and what its values mean."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .base import ANOMALOUS_NAMES, NORMAL_NAMES


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
                f"{what}: none of the values {list_values(meaning)} is among normal_labels={list(normal_labels)!r}."
            )
    else:
        meaning = {word: to_label(value) for word, value in zip(words, values) if word is not None}
        unknown = [word for word, label in meaning.items() if label is None]
        numeric = [word for word in unknown if word.replace(".", "", 1).lstrip("-").isdigit()]
        if unknown and (numeric or not any(label == 0 for label in meaning.values())):
            raise ValueError(
                f"{what} has the values {list_values(meaning)}, of which {list_values(unknown)} cannot be understood; "
                "expected 0 and 1, or words such as good and bad. Say with normal_labels=[...] which ones are normal."
            )
        meaning = {word: 1 if label is None else label for word, label in meaning.items()}
    plain = {"0", "1", "0.0", "1.0", "true", "false"}
    kinds = ["" if w is None or not meaning[w] or w.lower() in plain | ANOMALOUS_NAMES else w for w in words]
    read = "; ".join(
        f"{name}: {list_values([word for word, label in meaning.items() if label == value])}"
        for value, name in enumerate(("normal", "anomalous"))
        if any(label == value for label in meaning.values())
    )
    return [None if word is None else meaning[word] for word in words], kinds, read


def list_values(words) -> str:
    words = list(words)
    return ", ".join(map(repr, words[:8])) + (", ..." if len(words) > 8 else "")


def to_split(value: Any) -> str:
    name = "" if is_missing(value) else str(value).strip().lower()
    return _SPLIT_NAMES.get(name, name) or "test"


__all__ = ["COLUMN_NAMES", "choose_columns", "is_missing", "to_label", "to_labels", "to_split"]
