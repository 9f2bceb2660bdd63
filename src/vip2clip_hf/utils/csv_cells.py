"""Cells of CSV files that people open in a spreadsheet."""

import re

from .text import shown


# Spreadsheets run a cell that begins with one of these as a formula, also in its full-width form.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def safe_cell(text: str) -> str:
    """
    Write text in a cell that a spreadsheet does not run as a formula.

    Use it for names and other text, not for numbers, whose sign would be escaped.

    Args:
        text (`str`): text, such as a file name.

    Returns:
        `str`: the text in one line, see [`shown`]. If it begins with `=`, `+`, `-`, `@`, a tab or a line break, it
        gets an apostrophe in front. Text that begins with apostrophes and one of these gets one more, so removing the
        first apostrophe restores it.
    """
    return f"'{shown(text)}" if _FORMULA.match(text) else shown(text)


__all__ = ["safe_cell"]
