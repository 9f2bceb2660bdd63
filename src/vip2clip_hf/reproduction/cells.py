"""Cells of a table: the published result, ours over the seeds, the difference and remarks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation.published import METHODS, Triple
from .layouts import TableLayout, TableRow, setting_of
from .measured import CellKey, Measured, Spread, spread


METRIC_NAMES = {"image": ("AUROC", "AP", "F1"), "pixel": ("AUROC", "AUPRO", "F1")}
NOT_RUN = "no result yet"
_NONE = (math.nan, math.nan, math.nan)
# Columns of Tables 1 and 2 that need no result of ours.
_OTHER_METHODS = {setting_of(method) for method in METHODS} - {"full"}


@dataclass(frozen=True)
class TableCell:
    """
    Cell of a table.

    Args:
        paper (`Triple`, *optional*): published result, in percent.
        taken_over (`bool`): whether the paper took it from another paper.
        ours (`tuple[Spread, ...]`): mean and spread over the seeds of each metric. Empty if there is no result.
        difference (`tuple[float, float, float]`): ours minus the published result, in percentage points. NaN where
            one of them is missing, undefined, or not of the same data.
        notes (`tuple[str, ...]`): remarks, such as why there is no result.
    """

    paper: Triple | None = None
    taken_over: bool = False
    ours: tuple[Spread, ...] = ()
    difference: tuple[float, float, float] = _NONE
    notes: tuple[str, ...] = ()

    @property
    def num_seeds(self) -> int:
        """Number of seeds in our result, 0 without a result."""
        return self.ours[0].number if self.ours else 0


def table_cells(layout: TableLayout, measured: Mapping[CellKey, Measured]) -> list[list[TableCell]]:
    """
    Look up and compare the results of a table.

    Args:
        layout (`TableLayout`): the table.
        measured (`Mapping[CellKey, Measured]`): results. Cells without an entry have no result yet.

    Returns:
        `list[list[TableCell]]`: for each row, the cells of its columns of results.
    """
    table = []
    for row in layout.rows:
        cells = []
        for column, keys in enumerate(row.keys):
            if row.average:
                cells.append(_average_cell(layout, row, column, measured))
            else:
                cells.append(_cell(keys[0], row.published[column], keys[0] in layout.taken_over, measured))
        table.append(cells)
    return table


def signed(value: float) -> str:
    """
    Format a difference with its sign and one decimal.

    Args:
        value (`float`): difference in percentage points.

    Returns:
        `str`: such as `"+0.3"`; `"0.0"` without a sign if it rounds to zero, and a dash for NaN.
    """
    text = f"{value:+.1f}"
    return "-" if math.isnan(value) else "0.0" if text in ("+0.0", "-0.0") else text


def _cell(key: CellKey, paper: Triple | None, taken_over: bool, measured: Mapping[CellKey, Measured]) -> TableCell:
    found = measured.get(key)
    if found is None:
        return TableCell(paper, taken_over, notes=() if key.setting in _OTHER_METHODS else (NOT_RUN,))
    if not found.triples:
        return TableCell(paper, taken_over, notes=(found.note or NOT_RUN,))
    ours = found.spreads()
    notes = [found.note] if found.note else []
    for name, metric in zip(METRIC_NAMES[key.level], ours):
        if metric.undefined:
            part = "" if metric.undefined == metric.number else f" for {metric.undefined} of {metric.number} seeds"
            notes.append(f"{name} is undefined{part}")
    difference = _NONE
    if paper is not None and found.not_compared:
        notes.append(f"not compared with the paper: {found.not_compared}")
    elif paper is not None:
        difference = _minus(ours, paper)
    return TableCell(paper, taken_over, ours, difference, tuple(notes))


def _minus(ours: tuple[Spread, ...], paper: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = (one.mean - other for one, other in zip(ours, paper))
    return first, second, third


def _average_cell(layout: TableLayout, row: TableRow, column: int, measured: Mapping[CellKey, Measured]) -> TableCell:
    """
    Average over the datasets that have the metric: for each seed, then over the seeds. The difference is to the
    published results of the same datasets.
    """
    keys, paper = row.keys[column], row.published[column]
    found = {key: measured[key] for key in keys if key in measured and measured[key].triples}
    if paper is not None:
        found = {key: result for key, result in found.items() if not result.not_compared}
    if not found:
        return TableCell(paper)
    rows, notes = _common_seeds(found)
    if not rows:
        return TableCell(paper, notes=tuple(notes))
    titles = {key: one.labels[-2] for one in layout.rows if not one.average for key in one.keys[column]}
    known = {key: one.published[column] for one in layout.rows if not one.average for key in one.keys[column]}
    ours, bases, missing = [], [], []
    for metric in range(3):
        used = [key for key in rows if not any(math.isnan(triple[metric]) for triple in rows[key])]
        each = [math.fsum(values) / len(used) for values in zip(*([one[metric] for one in rows[key]] for key in used))]
        ours.append(spread(each) if used else Spread(math.nan, math.nan, len(next(iter(rows.values()))), 0))
        values = [known[key] for key in used]
        if paper is None or not used or any(value is None for value in values):
            bases.append(math.nan)
        elif len(used) == len(keys):
            bases.append(paper[metric])
        else:
            bases.append(math.fsum(value[metric] for value in values if value is not None) / len(used))
        missing.append([titles[key] for key in keys if key not in used])
    notes += _missing_notes(missing, len(keys), METRIC_NAMES[keys[0].level], compared=paper is not None)
    return TableCell(paper, False, tuple(ours), _minus(tuple(ours), tuple(bases)), tuple(notes))


def _missing_notes(missing: list[list[str]], total: int, names: tuple[str, ...], compared: bool) -> list[str]:
    """Explain over which datasets an average is, once if it is the same for all metrics."""
    same = missing[0] == missing[1] == missing[2]
    notes = []
    for name, titles in zip(names, missing[:1] if same else missing):
        if len(titles) == total:
            what = "no average: undefined" if same else f"{name}: no average, undefined or missing"
            notes.append(f"{what} for all datasets")
        elif titles:
            what = "average over" if same else f"{name}: average over"
            base = "; the difference is to the published results of the same datasets" if compared else ""
            notes.append(f"{what} {total - len(titles)} of {total} datasets, without {', '.join(titles)}{base}")
    return notes


def _common_seeds(
    found: Mapping[CellKey, Measured],
) -> tuple[dict[CellKey, list[tuple[float, float, float]]], list[str]]:
    """Results of the seeds that all datasets have, and remarks."""
    if not any(result.seeds for result in found.values()):
        if len({result.num_seeds for result in found.values()}) > 1:
            return {}, ["no average: the numbers of seeds differ and the seeds are not recorded"]
        return {key: list(result.triples) for key, result in found.items()}, []
    if not all(result.seeds for result in found.values()):
        return {}, ["no average: the seeds of some datasets are not recorded"]
    common = sorted(set.intersection(*({*result.seeds} for result in found.values())))
    if not common:
        return {}, ["no average: no seed has results of all datasets"]
    notes = []
    if any(len(result.seeds) > len(common) for result in found.values()):
        seeds = ", ".join(map(str, common))
        notes = [f"average over the seeds with results of all datasets: {seeds}"]
    rows = {key: [result.triples[result.seeds.index(seed)] for seed in common] for key, result in found.items()}
    return rows, notes


__all__ = ["METRIC_NAMES", "NOT_RUN", "TableCell", "signed", "table_cells"]
