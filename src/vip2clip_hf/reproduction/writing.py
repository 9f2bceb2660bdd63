"""Write a table as Markdown, LaTeX and CSV: laid out as in the paper, with ours and the difference below each row."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from ..evaluation.published_ablations import ABLATIONS
from ..evaluation.tables import tabulate_rows
from ..utils.csv_cells import safe_cell
from ..utils.files import write_atomically
from ..utils.latex import escape_latex
from ..utils.text import shown
from .cells import METRIC_NAMES, TableCell, signed, table_cells
from .gains import NONE, gains, gains_summary, gains_table
from .layouts import TableLayout
from .measured import CellKey, Measured


SOURCES = ("paper", "ours", "difference")
LEGEND = (
    "Metrics are in percent: AUROC, AP (image level) or AUPRO (pixel level; PRO in the paper), and F1. Rows: the "
    "published result (arXiv:2505.17692); ours, as mean ± standard deviation over n seeds; and the difference, ours "
    "minus published, in percentage points. A dash marks a result that does not exist."
)
OWN_LEGEND = (
    "Metrics are in percent: AUROC, AP (image level) or AUPRO (pixel level), and F1, as mean ± standard deviation "
    "over n seeds. There are no published results of these datasets. A dash marks a result that does not exist."
)
ONE_SEED = "With n = 1, the spread over seeds is unknown."
NO_ROWS = "The plan contains no dataset of this table."
TAKEN_OVER_NOTE = "* Published in the paper of the method, as marked in Table 1."
GAINS_NOTE = (
    "Differences of the rows above, ours, in percentage points: mean ± standard deviation of the paired differences "
    "over the seeds. A difference that is not larger than its standard deviation is not called a gain or a loss."
)
# Characters that pdfLaTeX does not have in its text fonts.
_SYMBOLS = {"✓": r"$\checkmark$", "±": r"$\pm$", "²": r"\textsuperscript{2}"}


class _Notes:
    """Numbered notes. The same text has the same number everywhere."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, notes: Sequence[str]) -> str:
        for note in notes:
            if note not in self.texts:
                self.texts.append(note)
        return "".join(f" [{number}]" for number in sorted(self.texts.index(note) + 1 for note in notes))

    def lines(self) -> list[str]:
        return [f"[{number}] {shown(text)}." for number, text in enumerate(self.texts, start=1)]


def write_table(
    layout: TableLayout, measured: Mapping[CellKey, Measured], folder: Path, *, footer: Sequence[str] = ()
) -> list[Path]:
    """
    Write a table, for instance `table4.md`, `table4.tex` and `table4.csv`.

    Args:
        layout (`TableLayout`): the table, see [`table_layout`].
        measured (`Mapping[CellKey, Measured]`): results. Cells without an entry have no result yet.
        folder (`pathlib.Path`): folder of the files. It is created if it does not exist.
        footer (`Sequence[str]`): lines below the table, such as the commit and the hardware. Not in the CSV file.

    Returns:
        `list[pathlib.Path]`: the three files.

    Raises:
        ImportError: if tabulate is not installed.
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "md": markdown_table(layout, measured, footer),
        "tex": latex_table(layout, measured, footer),
        "csv": csv_table(layout, measured),
    }
    paths = []
    for extension, content in contents.items():
        path = folder / f"table{layout.number}.{extension}"
        write_atomically(path, content)
        paths.append(path)
    return paths


def markdown_table(layout: TableLayout, measured: Mapping[CellKey, Measured], footer: Sequence[str] = ()) -> str:
    """
    Format a table as Markdown. Below an ablation, its rows are compared, see [`vip2clip_hf.reproduction.gains`].

    Args:
        layout, measured, footer: see [`write_table`].

    Returns:
        `str`: the document.

    Raises:
        ImportError: if tabulate is not installed.
    """
    cells = table_cells(layout, measured)
    rows, notes = _text_rows(layout, cells)
    headers = [*map(_title, layout.label_titles), "source", *map(_title, layout.column_titles)]
    table = tabulate_rows([[_piped(cell) for cell in row] for row in rows], [*map(_piped, headers)], "github")
    parts = [f"# Table {layout.number}. {layout.caption}"]
    if rows:
        parts.append(table)
    lines = [re.sub(r"^\*", r"\\*", line) for line in [*_remarks(layout, cells), *notes]]
    parts.append("\n".join(f"- {line}" for line in lines))
    if layout.number in ABLATIONS:
        found = gains(layout, measured)
        if any(one.verdict != NONE for one in found):
            parts += ["## Gains", gains_table(found, "github"), GAINS_NOTE, gains_summary(found)]
            partial = [one.sentence for one in found if one.note and one.verdict != NONE]
            parts += ["\n".join(f"- {shown(line)}" for line in partial)] if partial else []
    parts += [shown(line) for line in footer]
    return "\n\n".join(parts) + "\n"


def _piped(text: str) -> str:
    """Escape the character that ends a cell in Markdown."""
    return text.replace("|", r"\|")


def _title(lines: tuple[str, str]) -> str:
    """Write the two lines of a title in one."""
    return ", ".join(line for line in lines if line not in ("", "-"))


def _remarks(layout: TableLayout, cells: Sequence[Sequence[TableCell]]) -> list[str]:
    """Lines below a table, before the numbered notes."""
    shown_cells = [cell for row in cells for cell in row]
    published = any(cell.paper is not None for cell in shown_cells)
    lines = [LEGEND if published else OWN_LEGEND] if shown_cells else [NO_ROWS]
    if any(cell.num_seeds == 1 for cell in shown_cells):
        lines.append(ONE_SEED)
    if any(cell.taken_over for cell in shown_cells):
        lines.append(TAKEN_OVER_NOTE)
    return [*lines, *map(shown, layout.notes)]


def _text_rows(layout: TableLayout, cells: Sequence[Sequence[TableCell]]) -> tuple[list[list[str]], list[str]]:
    """
    Rows of text, and the numbered notes. Each row of the paper has three, of own data only ours: without published
    values, the others would be empty.
    """
    numbered, rows = _Notes(), []
    published = any(cell.paper is not None for found in cells for cell in found)
    for row, found in zip(layout.rows, cells):
        if not found:
            continue
        numbers = {cell.num_seeds for cell in found if cell.ours}
        same = len(numbers) == 1
        source = f"ours, n = {next(iter(numbers))}" if same else "ours"
        blank = [""] * len(row.labels)
        ours = [_ours(cell, same) + numbered.mark(cell.notes) for cell in found]
        if not published:
            rows.append([*row.labels, source, *ours])
            continue
        rows += [
            [*row.labels, "paper", *(_published(cell) for cell in found)],
            [*blank, source, *ours],
            [*blank, "difference", *(_triple(map(signed, cell.difference)) for cell in found)],
        ]
    return rows, numbered.lines()


def _triple(texts: Iterable[str]) -> str:
    """Format a cell: three texts in parentheses, or a dash if all are dashes."""
    texts = list(texts)
    return "-" if set(texts) == {"-"} else f"({', '.join(texts)})"


def _published(cell: TableCell) -> str:
    if cell.paper is None:
        return "-"
    return _triple([f"{value:.1f}" for value in cell.paper]) + "*" * cell.taken_over


def _ours(cell: TableCell, same: bool) -> str:
    if not cell.ours:
        return "-"
    texts = []
    for metric in cell.ours:
        deviation = "" if math.isnan(metric.deviation) else f" ± {metric.deviation:.1f}"
        texts.append("-" if math.isnan(metric.mean) else f"{metric.mean:.1f}{deviation}")
    return _triple(texts) + ("" if same else f", n = {cell.num_seeds}")


def latex_table(layout: TableLayout, measured: Mapping[CellKey, Measured], footer: Sequence[str] = ()) -> str:
    """
    Format a table as LaTeX, for the packages amssymb, booktabs and graphicx.

    Args:
        layout, measured, footer: see [`write_table`].

    Returns:
        `str`: a `table*` environment with notes below the table. Names with characters outside the fonts of pdfLaTeX
        need XeLaTeX or LuaLaTeX.

    Raises:
        ImportError: if tabulate is not installed.
    """
    cells = table_cells(layout, measured)
    rows, notes = _text_rows(layout, cells)
    titles = [*layout.label_titles, ("source", ""), *layout.column_titles]
    lines = [
        "% Packages: amssymb, booktabs, graphicx",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{_latex(layout.caption)} Table {layout.number} of arXiv:2505.17692, published and ours.}}",
        rf"\label{{tab:vip2clip-{layout.number}}}",
    ]
    if rows:
        lines += [r"\resizebox{\textwidth}{!}{%", _tabular(rows, titles, len(layout.label_titles) + 1), "}"]
    below = [*_remarks(layout, cells), *notes, *map(shown, footer)]
    lines += [rf"\par\smallskip\raggedright\footnotesize {_latex(line)}" for line in below]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _latex(text: str) -> str:
    return _symbols(escape_latex(shown(text)))


def _symbols(text: str) -> str:
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    return text


def _tabular(rows: Sequence[Sequence[str]], titles: Sequence[tuple[str, str]], num_labels: int) -> str:
    """
    Format rows with two lines of titles. Equal titles in the first line are joined, and rules separate the rows of the
    paper.
    """
    first, second = zip(*titles)
    lines = tabulate_rows(rows, list(second), "latex_booktabs").split("\n")
    joined, rules, column = [], [], 1
    for title, group in groupby(first):
        width = len(list(group))
        text = escape_latex(shown(title))
        if title and width > 1:
            joined.append(rf"\multicolumn{{{width}}}{{c}}{{{text}}}")
            rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        else:
            joined += [text] * width
        column += width
    top, middle = lines.index(r"\toprule"), lines.index(r"\midrule")
    body = lines[middle + 1 : -2]  # without \bottomrule and \end{tabular}
    # A bracket after a line break would be its argument.
    body = [re.sub(r"^(\s*)\[", r"\1{}[", re.sub(r"(?<=[(, ])-(?=\d)", "$-$", line)) for line in body]
    count = len(SOURCES) if any(SOURCES[-1] in row for row in rows) else 1
    for place in range(count, len(body) // count * count, count):
        body[place] = f"\\midrule\n{body[place]}"
    header = [" & ".join(joined) + r" \\", *([" ".join(rules)] if rules else [])]
    # The second line of titles may be empty.
    header += lines[top + 1 : middle] if any(second) else []
    return _symbols("\n".join([*lines[: top + 1], *header, lines[middle], *body, *lines[-2:]]))


def csv_table(layout: TableLayout, measured: Mapping[CellKey, Measured]) -> str:
    """
    Format a table as CSV with all digits.

    Args:
        layout, measured: see [`write_table`].

    Returns:
        `str`: three rows for each row of the paper, with the column `source` (`paper`, `ours` or `difference`). For
        each column of results: three metrics, the standard deviation of each, and the number of seeds `n`. Empty if
        undefined. The last column contains remarks.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = []
    for place, (title, _) in enumerate(layout.column_titles):
        names = ("AUROC", "AP or AUPRO", "F1")
        if layout.number > 2:
            level = layout.rows[0].keys[place][0].level
            names = METRIC_NAMES[level]
            title = f"{title} {level}"
        columns += [f"{title} {name}{part}" for part in ("", " sd") for name in names] + [f"{title} n"]
    writer.writerow([*(safe_cell(_title(title)) for title in layout.label_titles), "source",
                     *map(safe_cell, columns), "notes"])  # fmt: skip
    task = ""
    for row, cells in zip(layout.rows, table_cells(layout, measured)):
        labels = list(row.labels)
        if layout.number <= 2:  # written once in a block of the paper
            task = labels[0] = labels[0] or task
        labels = ["" if label == "-" else safe_cell(label) for label in labels]
        notes = "; ".join(dict.fromkeys(note for cell in cells for note in cell.notes))
        lines: dict[str, list[str]] = {source: [] for source in SOURCES}
        for cell in cells:
            ours, empty = cell.ours, [""] * 3
            lines["paper"] += [*(map(_number, cell.paper) if cell.paper else empty), *empty, ""]
            lines["ours"] += [_number(one.mean) for one in ours] or empty
            lines["ours"] += [_number(one.deviation) for one in ours] or empty
            lines["ours"].append(str(cell.num_seeds))
            lines["difference"] += [*map(_number, cell.difference), *empty, ""]
        for source, values in lines.items():
            writer.writerow([*labels, source, *values, safe_cell(notes) if source == "ours" else ""])
    return text.getvalue()


def _number(value: float) -> str:
    """Number with all its digits, or empty for NaN."""
    return "" if math.isnan(value) else repr(float(value))


__all__ = ["LEGEND", "SOURCES", "csv_table", "latex_table", "markdown_table", "write_table"]
