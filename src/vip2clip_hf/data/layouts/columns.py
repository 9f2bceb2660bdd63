"""Columns of tables and Hub datasets: column names and label values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .words import NO_TYPE_WORDS, is_ambiguous_word, is_missing_word, simplify, split_name, word_label


# Usual column names, the most likely first. `label` comes late because some tables use it for the defect type.
COLUMN_NAMES = {
    "image": ("image", "file_name", "image_path", "img_path", "filename", "path", "file", "filepath", "image_file"),
    "mask": ("mask", "mask_file_name", "mask_path", "mask_file", "ground_truth", "segmentation", "mask_filename"),
    "label": (
        "anomaly", "is_anomaly", "anomalous", "is_anomalous", "label", "target", "class", "status", "is_defect",
        "is_defective", "is_good", "is_ok", "is_normal", "good", "ok", "normal", "passed", "is_pass", "quality",
    ),
    "category": ("category", "cls_name", "object", "product", "category_name"),
    "defect": ("defect", "specie_name", "defect_type", "anomaly_type", "defect_class"),
    "split": ("split", "subset", "partition"),
    "image_id": ("image_id", "id"),
}  # fmt: skip
# Columns in which yes, true and 1 mean normal.
_NORMAL_COLUMNS = frozenset(
    {"good", "is_good", "ok", "is_ok", "normal", "is_normal", "passed", "pass", "is_pass", "quality_ok", "accepted"}
)
# Columns in which positive means anomalous and none means normal.
_ANOMALY_COLUMNS = frozenset(
    {
        "anomaly",
        "is_anomaly",
        "anomalous",
        "is_anomalous",
        "defect",
        "is_defect",
        "defective",
        "is_defective",
        "diagnosis",
    }
)
_NO = frozenset({"0", "no", "false"})
_YES = frozenset({"1", "yes", "true"})
GUESSED_TYPES = "label words read as kinds of defects, because another label means normal"
NO_LABEL_WORDS = "label words that mean that the label is not known, read as no label"
INVERTED = "columns in which 1, yes and true mean normal, by their names"


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


def to_label(value: Any, column: str = "") -> int | None:
    """Convert a number, boolean or usual word to the label 0 or 1. None if the meaning is unknown.

    Args:
        value: number, boolean or word.
        column (`str`, defaults to `""`): name of the column. In `is_good` and similar ones, 1 means normal.
    """
    column = column.strip().lower()
    yes = int(column not in _NORMAL_COLUMNS)
    if value is None:
        return None
    if isinstance(value, bool):
        return yes if value else 1 - yes
    if isinstance(value, (int, float)):
        return None if value not in (0, 1) else yes if value else 1 - yes
    word = str(value).strip().lower()
    word = word[:-2] if word.endswith(".0") else word
    if word in _NO or word in _YES:
        return yes if word in _YES else 1 - yes
    if is_ambiguous_word(word):
        return int(simplify(word).startswith("pos")) if column in _ANOMALY_COLUMNS else None
    return word_label(word)[0]


def is_missing(value: Any) -> bool:
    """Whether a cell is null, NaN or blank."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""


@dataclass(frozen=True)
class Labels:
    """
    Meaning of a label column.

    Args:
        labels (`list[int | None]`): label of each row: 0, 1, or None if it is missing or not known.
        defects (`list[str]`): defect type of each row, empty if unknown.
        meaning (`str`): description of the meaning of each value.
        warnings (`dict[str, list[str]]`): values that were guessed or that mean nothing, grouped by kind.
    """

    labels: list[int | None]
    defects: list[str]
    meaning: str
    warnings: dict[str, list[str]]


def to_labels(
    values: Sequence[Any],
    normal_labels: Sequence[str] | None,
    anomalous_labels: Sequence[str] | None,
    column: str,
    root: str,
) -> Labels:
    """
    Convert the values of a label column.

    0 and 1, booleans and usual words (good, ok, pass, bad, defect, fail, ...) are known. If some values mean normal,
    all unknown words are taken as defect types. Words such as unknown and n/a give no label.

    Args:
        values (`Sequence[Any]`): values of the column.
        normal_labels (`Sequence[str]`, *optional*): values that mean normal. All other values then mean anomalous, or
            only `anomalous_labels`, if they are set as well.
        anomalous_labels (`Sequence[str]`, *optional*): values that mean anomalous.
        column, root (`str`): name of the column, and path or id of its dataset, for error messages.

    Returns:
        [`Labels`]: the labels and what was guessed.

    Raises:
        ValueError: if the meaning of a value is unknown or no value is in `normal_labels` or `anomalous_labels`.
    """
    what = f"Column {column!r} of {root!r}"
    words = [None if is_missing(value) else str(value).strip() for value in values]
    given: dict[str, int] = {}
    found_words = {word.lower() for word in words if word is not None}
    for argument, chosen, meaning in (
        ("normal_labels", normal_labels, 0), ("anomalous_labels", anomalous_labels, 1)
    ):  # fmt: skip
        given.update((str(one).strip().lower(), meaning) for one in chosen or ())
        if chosen is not None and found_words and not found_words & {str(one).strip().lower() for one in chosen}:
            names = list(dict.fromkeys(word for word in words if word is not None))
            raise ValueError(
                f"{what} has the values {list_values(names)}; expected at least one of {argument}={list(chosen)!r}."
            )
    known: dict[str, int | None] = {}
    unknown, missing = [], []
    for word, value in zip(words, values):
        if word is None or word in known:
            continue
        if word.lower() in given:
            known[word] = given[word.lower()]
        elif is_missing_word(word):
            known[word] = None
            missing.append(word)
        elif normal_labels is not None and anomalous_labels is None:
            known[word] = 1
        elif normal_labels is not None or (label := to_label(value, column)) is None:
            known[word] = None
            unknown.append(word)
        else:
            known[word] = label
    numeric = [word for word in unknown if word.replace(".", "", 1).lstrip("-").isdigit()]
    unclear = numeric or [word for word in unknown if is_ambiguous_word(word)]
    if unknown and (normal_labels is not None or unclear or not any(label == 0 for label in known.values())):
        raise ValueError(
            f"{what} has the values {list_values(known)}, and the meaning of {list_values(unknown)} is unknown; "
            "expected 0 and 1, or words such as good and bad. Set the normal values with normal_labels=[...] and the "
            "anomalous ones with anomalous_labels=[...] (--normal-label, --anomalous-label)."
        )
    known.update(dict.fromkeys(unknown, 1))
    warnings = {GUESSED_TYPES: unknown, NO_LABEL_WORDS: missing}
    if column.strip().lower() in _NORMAL_COLUMNS and found_words & (_NO | _YES):
        warnings[INVERTED] = [column]
    plain = _NO | _YES | {"0.0", "1.0"}
    defects = [
        "" if word is None or not known[word] or word.lower() in plain or simplify(word) in NO_TYPE_WORDS else word
        for word in words
    ]
    description = "; ".join(
        f"{name}: {list_values([word for word, label in known.items() if label == value])}"
        for value, name in enumerate(("normal", "anomalous"))
        if any(label == value for label in known.values())
    )
    labels = [None if word is None else known[word] for word in words]
    return Labels(labels, defects, description, {kind: found for kind, found in warnings.items() if found})


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
    return split_name(name) or name or "test"


__all__ = [
    "COLUMN_NAMES",
    "Labels",
    "choose_columns",
    "describe_labels",
    "is_missing",
    "to_label",
    "to_labels",
    "to_split",
]
