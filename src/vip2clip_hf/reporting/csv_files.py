"""Results of a prediction as a CSV file, next to its settings."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..utils.csv_cells import safe_cell
from ..utils.files import write_atomically
from ..utils.serialization import to_json
from .predictions import COLUMNS, Prediction, columns_of


# First columns of every table.
HEADER = ",".join(COLUMNS)
# Added to the name of the table.
SETTINGS_ENDING = ".json"
KINDS = ("prediction", "watch")
# An apostrophe that `safe_cell` put in front.
_ESCAPED = re.compile(r"'('*(?:[=+\-@＝＋－＠]|\\[trn]))")
_NUMBERS = ("score", "p_value", "anomalous_area")


def csv_text(rows: Sequence[Prediction]) -> str:
    """
    Write results as CSV: one line per photo, with names that a spreadsheet does not run as a formula.

    Args:
        rows (`Sequence[Prediction]`): the results.

    Returns:
        `str`: the text. The column `truth` is there only if labels are known.
    """
    columns = columns_of(rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        content = asdict(row)
        writer.writerow([_cell(content[name]) for name in columns])
    return stream.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return safe_cell(value) if isinstance(value, str) else f"{value:.6g}"


def write_csv(
    rows: Sequence[Prediction], path: str | os.PathLike[str], settings: dict[str, Any] | None = None
) -> None:
    """
    Write results to a CSV file, completely or not at all.

    Args:
        rows (`Sequence[Prediction]`): the results.
        path (`str` or `os.PathLike`): the file; an existing one is replaced.
        settings (`dict[str, Any]`, *optional*): settings of the prediction, for `PATH.json`. They are written first,
            so the table never stands next to the settings of another one.

    Raises:
        OSError: if a file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if settings:
        write_atomically(settings_file(path), to_json(settings))
    write_atomically(path, csv_text(rows))


def settings_file(path: Path) -> Path:
    """
    Return the file of the settings of a table.

    Args:
        path (`pathlib.Path`): the table.

    Returns:
        `pathlib.Path`: the file next to it.
    """
    return path.with_name(path.name + SETTINGS_ENDING)


def check_settings_file(path: Path) -> None:
    """
    Check that the settings of a table would not replace another file.

    Args:
        path (`pathlib.Path`): the table.

    Raises:
        OSError: if the file of its settings exists and has other contents.
    """
    file = settings_file(path)
    if os.path.lexists(file) and _read_settings(file) is None:
        raise OSError(
            f"{str(file)!r} exists and does not contain settings of a table; move it, or choose another name."
        )


def read_csv(path: Path) -> tuple[list[Prediction], dict[str, Any]]:
    """
    Read results from a CSV file. Of several rows of a photo, the last one counts.

    Args:
        path (`pathlib.Path`): the file.

    Returns:
        `tuple[list[Prediction], dict[str, Any]]`: the results, and the settings, empty if they are not known.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a column is missing, or a value is not a number in [0, 1].
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 ({error}); expected a CSV file in UTF-8.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    found = list(reader.fieldnames or [])
    missing = [name for name in ("id", "score", "label") if name not in found]
    if missing:
        raise ValueError(
            f"{str(path)!r} has the columns {', '.join(found) or 'none'}; expected {', '.join(COLUMNS)}, as written "
            "by vip2clip predict --csv."
        )
    rows: dict[str, Prediction] = {}
    for content in reader:
        if None in content.values():
            count = sum(value is not None for value in content.values())
            raise ValueError(
                f"{path.name}, line {reader.line_num} has {count} values; expected {len(found)}. The file may be "
                "truncated; create it again."
            )
        row = _row(content, f"{path.name}, line {reader.line_num}")
        rows.pop(row.id, None)
        rows[row.id] = row
    return list(rows.values()), _settings(path)


def _row(content: dict[str, Any], where: str) -> Prediction:
    values: dict[str, Any] = {}
    for name in _NUMBERS:
        cell = content.get(name) or None
        try:
            values[name] = None if cell is None else float(cell)
        except ValueError as error:
            raise ValueError(f"{where}: {name} is {cell!r}; expected a number.") from error
        if values[name] is not None and not (math.isfinite(values[name]) and 0 <= values[name] <= 1):
            raise ValueError(f"{where}: {name} is {cell}; expected a number in [0, 1].")
    for name in ("id", "label", "error", "truth"):
        values[name] = _ESCAPED.sub(r"\1", content.get(name) or "", count=1) or None
    if values["id"] is None:
        raise ValueError(f"{where}: id is empty; expected the name of a photo.")
    return Prediction(**values)


def _settings(path: Path) -> dict[str, Any]:
    # `vip2clip watch` writes settings.json.
    for file in (settings_file(path), path.with_name("settings.json")):
        if file.exists() and (found := _read_settings(file)) is not None:
            return found
    return {}


def _read_settings(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OSError(f"{str(file)!r} cannot be read ({error}); delete it, or restore it.") from error
    return found if isinstance(found, dict) and found.get("kind") in KINDS else None


__all__ = ["HEADER", "SETTINGS_ENDING", "check_settings_file", "csv_text", "read_csv", "settings_file", "write_csv"]
