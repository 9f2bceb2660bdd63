"""Results of a prediction as an Excel file. CSV files are in `csv_files`."""

import io
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..utils.extras import extra
from ..utils.files import write_atomically
from ..utils.text import shown
from .predictions import Prediction, Predictions, columns_of
from .summary import settings_lines


TITLES = {
    "id": "Photo", "score": "Score", "label": "Label", "p_value": "p-value", "anomalous_area": "Anomalous area",
    "error": "Error", "truth": "Ground truth",
}  # fmt: skip
FORMATS = {"score": "0.000", "p_value": "0.0000", "anomalous_area": "0.0%"}
WIDTHS = {"id": 48, "label": 14, "error": 60, "truth": 14}
CREATOR = "vip2clip_hf"
# Limits of the file format.
MOST_ROWS, LONGEST_TEXT = 1_048_575, 32_767


def write_xlsx(found: Predictions, path: str | os.PathLike[str]) -> None:
    """
    Write results to an Excel file, completely or not at all: a sheet with one row per photo, the photo with the
    highest score first, and a sheet with the settings. Text is never a formula.

    Args:
        found ([`Predictions`]): the results.
        path (`str` or `os.PathLike`): the file; an existing one is replaced.

    Raises:
        ImportError: if openpyxl is not installed.
        OSError: if the file cannot be written.
        ValueError: if there are more rows than the format can hold.
    """
    if len(found.rows) > MOST_ROWS:
        raise ValueError(
            f"The table has {len(found.rows)} rows; expected at most {MOST_ROWS} for an Excel file. Write a CSV file."
        )
    with extra("report", "An Excel file"):
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.styles import Font
        from openpyxl.utils import get_column_letter

    columns = columns_of(found.rows)
    book = Workbook(write_only=True)
    book.properties.creator = CREATOR
    sheet = book.create_sheet("Photos")
    sheet.freeze_panes = "A2"
    sheet.auto_filter.ref = f"A1:{get_column_letter(len(columns))}{len(found.rows) + 1}"
    for number, name in enumerate(columns, start=1):
        sheet.column_dimensions[get_column_letter(number)].width = WIDTHS.get(name, 15)

    def cell(target: Any, value: Any, style: str | None = None, bold: bool = False) -> Any:
        made = WriteOnlyCell(target, value=shown(value)[:LONGEST_TEXT] if isinstance(value, str) else value)
        if isinstance(value, str):
            made.data_type = "s"  # openpyxl makes a formula of text that starts with =
            made.quotePrefix = True  # stays text when somebody edits the cell
        if style is not None:
            made.number_format = style
        if bold:
            made.font = Font(bold=True)
        return made

    sheet.append([cell(sheet, TITLES[name], bold=True) for name in columns])
    for row in _ordered(found):
        content = asdict(row)
        sheet.append([cell(sheet, content[name], FORMATS.get(name)) for name in columns])
    settings = book.create_sheet("Settings")
    settings.column_dimensions["A"].width, settings.column_dimensions["B"].width = 26, 90
    for name, value in settings_lines(found):
        settings.append([cell(settings, name, bold=True), cell(settings, value)])
    buffer = io.BytesIO()
    book.save(buffer)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def _ordered(found: Predictions) -> Sequence[Prediction]:
    rows = found.rows
    return [rows[position] for position in found.most_anomalous()] + [row for row in rows if row.score is None]


__all__ = ["CREATOR", "write_xlsx"]
