"""Gains in the ablations (Tables 4, 5 and 6): paired differences over the seeds, compared with their spread."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evaluation.tables import tabulate_rows
from .cells import signed
from .layouts import TICK, TableLayout, TableRow
from .measured import CellKey, Measured, paired, spread


# Metrics of the comparison, by level: index in the triple and name.
METRICS = {"pixel": ((0, "pixel AUROC"), (1, "AUPRO")), "image": ((0, "image AUROC"),)}
GAIN, LOSS, WITHIN, UNKNOWN, NONE = "gain", "loss", "within the spread", "spread unknown", "no result"
# By table: the setting that is compared with each other row, and whether it is the base of the differences.
_REFERENCE = {4: ("full", False), 5: ("dual", True), 6: ("full", True)}


@dataclass(frozen=True)
class Gain:
    """
    Difference of two rows of a table in one metric.

    Args:
        row, base (`str`): titles of the two rows. The difference is row minus base.
        dataset (`str`): title of the dataset.
        metric (`str`): `"pixel AUROC"`, `"AUPRO"` or `"image AUROC"`.
        mean (`float`): mean of the differences of the seeds, in percentage points. NaN without results.
        deviation (`float`): their standard deviation. NaN for fewer than two seeds.
        number (`int`): number of seeds with results of both rows.
        verdict (`str`): `"gain"` or `"loss"` if the mean is larger than the standard deviation in absolute value;
            otherwise `"within the spread"`. `"spread unknown"` for one seed, `"no result"` without results.
        note (`str`, *optional*): why seeds are missing.
    """

    row: str
    base: str
    dataset: str
    metric: str
    mean: float
    deviation: float
    number: int
    verdict: str
    note: str | None = None

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        what = f"{self.dataset}, {self.metric}: {self.row} against {self.base}"
        if self.verdict == NONE:
            return f"{what}: no result{f' ({self.note})' if self.note else ''}."
        seeds = "1 seed" if self.number == 1 else f"{self.number} seeds"
        size = signed(self.mean) + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.1f}")
        left_out = f"; {self.note}" if self.note else ""
        words = {
            GAIN: "a gain",
            LOSS: "a loss",
            WITHIN: "within the spread, so not a gain or a loss",
            UNKNOWN: "the spread is unknown, so not called a gain or a loss",
        }
        return f"{what}: {size} percentage points over {seeds}{left_out}: {words[self.verdict]}."


def gains(layout: TableLayout, measured: Mapping[CellKey, Measured]) -> list[Gain]:
    """
    Compare the rows of an ablation: in Table 4 the full model with each other row, in Table 5 UTPA with dual, and in
    Table 6 each pair of state words with Good/Damage.

    Args:
        layout (`TableLayout`): layout of Table 4, 5 or 6.
        measured (`Mapping[CellKey, Measured]`): results.

    Returns:
        `list[Gain]`: for each pair of rows, the differences by dataset and metric, in the order of the columns. Empty
        if the table does not contain the row that the others are compared with.

    Raises:
        ValueError: if the table is not an ablation.
    """
    if layout.number not in _REFERENCE:
        raise ValueError(f"The table is {layout.number}; expected {', '.join(map(str, _REFERENCE))}.")
    setting, is_base = _REFERENCE[layout.number]
    settings = {_setting(row): row for row in layout.rows if row.keys}
    reference = settings.pop(setting, None)
    if reference is None:
        return []
    found = []
    for other in settings.values():
        row, base = (other, reference) if is_base else (reference, other)
        for column, (dataset, _) in enumerate(layout.column_titles):
            pair = measured.get(row.keys[column][0], Measured()), measured.get(base.keys[column][0], Measured())
            for index, metric in METRICS[row.keys[column][0].level]:
                found.append(_gain(_title(layout, row), _title(layout, base), dataset, metric, index, *pair))
    return found


def _setting(row: TableRow) -> str:
    return row.keys[0][0].setting


def _title(layout: TableLayout, row: TableRow) -> str:
    """Name of a row: its modules in Table 4, such as `UTPA + ICA`, else its label."""
    if layout.number != 4:
        return row.labels[0]
    if _setting(row) == "full":
        return "all modules"
    modules = [second or first for (first, second), label in zip(layout.label_titles, row.labels) if label == TICK]
    return " + ".join(modules) or "no module"


def _gain(row: str, base: str, dataset: str, metric: str, index: int, ours: Measured, theirs: Measured) -> Gain:
    pairs, note = paired(ours, theirs)
    values = [one[index] - other[index] for one, other in pairs]
    undefined = sum(map(math.isnan, values))
    found = spread(values)
    if not values:
        reasons = [one.note for one in (ours, theirs) if one.note and not one.triples]
        verdict, note = NONE, "; ".join(dict.fromkeys(reasons)) or note
    elif undefined:
        verdict, note = NONE, f"undefined for {undefined} of {len(values)} seeds"
    elif len(values) == 1:
        verdict = UNKNOWN
    elif abs(found.mean) <= found.deviation or found.mean == 0:
        verdict = WITHIN
    else:
        verdict = GAIN if found.mean > 0 else LOSS
    return Gain(row, base, dataset, metric, found.mean, found.deviation, found.number, verdict, note)


def gains_table(found: Sequence[Gain], tablefmt: str = "github") -> str:
    """
    Format gains as a table: a row for each pair of rows compared, a column for each dataset and metric.

    Args:
        found (`Sequence[Gain]`): result of [`gains`].
        tablefmt (`str`, defaults to `"github"`): table format of the tabulate library.

    Returns:
        `str`: the table.

    Raises:
        ImportError: if tabulate is not installed.
    """
    columns = list(dict.fromkeys((one.dataset, one.metric) for one in found))
    pairs: dict[str, dict[tuple[str, str], Gain]] = {}
    for one in found:
        pairs.setdefault(f"{one.row} against {one.base}", {})[one.dataset, one.metric] = one
    rows = [[title, *(_cell(cells[column]) for column in columns)] for title, cells in pairs.items()]
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows] if tablefmt == "github" else rows
    return tabulate_rows(rows, ["compared", *(f"{dataset}, {metric}" for dataset, metric in columns)], tablefmt)


def _cell(gain: Gain) -> str:
    if gain.verdict == NONE:
        return "-"
    size = signed(gain.mean) + ("" if math.isnan(gain.deviation) else f" ± {gain.deviation:.1f}")
    return f"{size}, n = {gain.number}: {gain.verdict}"


def gains_summary(found: Sequence[Gain]) -> str:
    """
    Count the verdicts in a sentence.

    Args:
        found (`Sequence[Gain]`): result of [`gains`].

    Returns:
        `str`: the sentence.
    """
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in (GAIN, LOSS, WITHIN, UNKNOWN, NONE)}
    words = {
        GAIN: "larger than the spread (gain)",
        LOSS: "lower by more than the spread (loss)",
        WITHIN: "within the spread",
        UNKNOWN: "of one seed, so their spread is unknown",
        NONE: "without result",
    }
    parts = [f"{count} {words[verdict]}" for verdict, count in counts.items() if count]
    return f"Of {len(found)} differences: {'; '.join(parts)}."


__all__ = ["GAIN", "LOSS", "METRICS", "NONE", "UNKNOWN", "WITHIN", "Gain", "gains", "gains_summary", "gains_table"]
