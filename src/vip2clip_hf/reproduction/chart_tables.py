"""Tables of the numbers behind Figures 5 and 6 of the paper: Markdown and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from ..evaluation.tables import tabulate_rows
from ..utils.csv_cells import safe_cell
from .chart_data import IMAGE_METRICS, F1Gain, TopKResult, gain_notes, seeds_text, top_k_notes
from .measured import LEVELS, Spread


GAINS_LEGEND = (
    "Difference of F1 between the full model and the model with static prompts, in percentage points: mean ± standard "
    "deviation of the differences over the seeds. A difference that is not larger than its standard deviation is "
    "marked with ~, and so is one of a single seed, whose spread is unknown."
)
TOP_K_LEGEND = (
    "Image-level metrics in percent by K, the number of top patches per layer in the image score: mean ± standard "
    "deviation over the seeds."
)


def gains_csv(gains: Sequence[F1Gain]) -> str:
    """
    Write the numbers of Fig. 5 as CSV.

    Args:
        gains (`Sequence[F1Gain]`): the gains.

    Returns:
        `str`: one row per gain, in percentage points. Cells without a value are empty.
    """
    header = ["dataset", "level", "seeds", "mean", "deviation", "exceeds_spread", "differences", "published", "note"]
    rows = []
    for gain in gains:
        found = gain.spread
        exceeds = "" if math.isnan(found.deviation) else str(gain.exceeds_spread).lower()
        numbers = [str(found.number), _number(found.mean), _number(found.deviation), exceeds]
        differences = " ".join(_number(value) or "nan" for value in gain.differences)
        rows.append([safe_cell(gain.dataset), gain.level, *numbers, differences, _number(gain.published)])
        rows[-1].append(safe_cell(gain.note or ""))
    return _csv(header, rows)


def top_k_csv(results: Sequence[TopKResult]) -> str:
    """
    Write the numbers of Fig. 6 as CSV.

    Args:
        results (`Sequence[TopKResult]`): the results.

    Returns:
        `str`: one row per dataset, K and metric, in percent. Cells without a value are empty.
    """
    rows = []
    for one in results:
        for metric in IMAGE_METRICS:
            found = one.spread(metric)
            numbers = [str(found.number), _number(found.mean), _number(found.deviation)]
            rows.append([safe_cell(one.dataset), str(one.top_k), metric, *numbers, safe_cell(one.measured.note or "")])
    return _csv(["dataset", "top_k", "metric", "seeds", "mean", "deviation", "note"], rows)


def gains_markdown(gains: Sequence[F1Gain], titles: Mapping[str, str] | None = None) -> str:
    """
    Write the numbers of Fig. 5 as Markdown.

    Args:
        gains (`Sequence[F1Gain]`): the gains.
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `str`: a table with one row per dataset, and notes. A dash marks a missing gain.

    Raises:
        ImportError: if tabulate is not installed.
    """
    cells = {(gain.dataset, gain.level): gain for gain in gains}
    has_published = any(gain.published is not None for gain in gains)
    rows = []
    for dataset in dict.fromkeys(gain.dataset for gain in gains):
        row = [(titles or {}).get(dataset, dataset)]
        for level in LEVELS:
            gain = cells.get((dataset, level), F1Gain(dataset, level))
            row.append(gain_text(gain))
            if has_published:
                row.append("–" if gain.published is None else f"{gain.published:+.1f}")
        rows.append(row)
    columns = [f"{level} level" for level in LEVELS]
    if has_published:
        columns = [name for column in columns for name in (column, f"{column}, paper")]
    table = tabulate_rows(rows, ["dataset", *columns], "github", right=range(1, len(columns) + 1))
    seeds = seeds_text(gain.spread.number for gain in gains)
    return _page(
        "Figure 5: gain of F1 over static prompts", [table], f"{GAINS_LEGEND} {seeds}.", gain_notes(gains, titles)
    )


def top_k_markdown(results: Sequence[TopKResult], chosen: int, titles: Mapping[str, str] | None = None) -> str:
    """
    Write the numbers of Fig. 6 as Markdown.

    Args:
        results (`Sequence[TopKResult]`): the results.
        chosen (`int`): K of the full model.
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `str`: one table per metric, with one row per dataset and one column per K, and notes. A dash marks a missing
        or undefined value.

    Raises:
        ImportError: if tabulate is not installed.
    """
    cells = {(one.dataset, one.top_k): one for one in results}
    numbers = sorted({one.top_k for one in results})
    headers = [f"K = {number}{' (chosen)' if number == chosen else ''}" for number in numbers]
    tables = []
    for metric in IMAGE_METRICS:
        rows = []
        for dataset in dict.fromkeys(one.dataset for one in results):
            found = [cells.get((dataset, number)) for number in numbers]
            texts = ["–" if one is None else _spread_text(one.spread(metric), "") for one in found]
            rows.append([(titles or {}).get(dataset, dataset), *texts])
        tables.append(tabulate_rows(rows, [metric, *headers], "github", right=range(1, len(headers) + 1)))
    seeds = seeds_text(one.measured.num_seeds for one in results)
    return _page("Figure 6: ablation of K", tables, f"{TOP_K_LEGEND} Here {seeds}.", top_k_notes(results, titles))


def gain_text(gain: F1Gain) -> str:
    """
    Write a gain in a few characters.

    Args:
        gain (`F1Gain`): the gain.

    Returns:
        `str`: such as `"+1.2 ± 0.4"`. A gain that is not known to exceed its spread ends with `~`. A dash if there is
        none.
    """
    text = _spread_text(gain.spread, "+")
    return text if gain.exceeds_spread or math.isnan(gain.spread.mean) else f"{text} ~"


def _spread_text(found: Spread, sign: str) -> str:
    if math.isnan(found.mean):
        return "–"
    deviation = "" if math.isnan(found.deviation) else f" ± {found.deviation:.1f}"
    return f"{found.mean:{sign}.1f}{deviation}"


def _page(title: str, tables: Sequence[str], legend: str, notes: Sequence[str]) -> str:
    listed = "\n".join(f"- {note}" for note in notes)
    return "\n\n".join(part for part in (f"# {title}", *tables, legend, listed) if part) + "\n"


def _csv(header: list[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()


def _number(value: float | None) -> str:
    """Number with all its digits, or empty."""
    return "" if value is None or math.isnan(value) else repr(float(value))


__all__ = ["gain_text", "gains_csv", "gains_markdown", "top_k_csv", "top_k_markdown"]
