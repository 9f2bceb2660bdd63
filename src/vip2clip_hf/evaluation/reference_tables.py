"""Table of results with references, beside zero-shot and published results."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.benchmarks.registry import BENCHMARKS
from ..utils.text import shown
from .comparison import compared, triple
from .published import METHODS, TRIPLES, published
from .published_references import REFERENCE_METHODS, SOURCES, published_with_references
from .tables import LEVEL_TITLES, tabulate_rows


REFERENCES_NOTE = (
    "k is the number of references, normal photos per category, and 0 is zero-shot. Metrics are in percent: mean and "
    "standard deviation over the draws (seeds) of the references. Published results are "
    f"{'; '.join(f'{name}: {source}' for name, source in SOURCES.items())}. Their zero-shot results are those of the "
    "paper (arXiv:2505.17692)."
)


def is_zero_shot(result: dict[str, Any]) -> bool:
    """Whether a result was computed without references."""
    return not result.get("references")


def reference_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """
    Create the rows of the table: for each level and dataset, zero-shot and each number of references.

    Args:
        results (`Sequence[dict]`): results as described in [`vip2clip_hf.evaluation.tables`], with `references`,
            `reference_seed` and `dataset` if computed with references.

    Returns:
        `list[list[str]]`: task, dataset, number of references, number of draws, the published methods (only if one of
        them has results), and the results of this checkpoint. Empty if no result has references.
    """
    groups: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for result in results:
        name = result.get("dataset") or result["name"]
        groups.setdefault(name, {}).setdefault(result.get("references") or 0, []).append(result)
    groups = {name: found for name, found in groups.items() if any(found)}
    rows = []
    for level in TRIPLES:
        first = True
        for name, by_count in groups.items():
            for count, found in sorted(by_count.items()):
                benchmark = found[0]["benchmark"]
                ours = np.array([triple(one["mean"], level, as_published=benchmark is not None) for one in found])
                if np.isnan(ours).all():
                    continue
                title = shown(name) if benchmark is None else BENCHMARKS[benchmark].title
                rows.append(
                    [
                        LEVEL_TITLES[level] if first else "",
                        title + "†" * bool(found[0]["trained_on"]),
                        str(count),
                        str(len(found)) if count else "-",
                        *(_published(found[0], level, count, method) for method in REFERENCE_METHODS),
                        _cell([(float(np.mean(column)), _deviation(column)) for column in ours.T]),
                    ]
                )
                first = False
    return rows


def _published(result: dict[str, Any], level: str, count: int, method: str) -> str:
    """Cell of a published method, or a dash if it has no result that can be compared."""
    benchmark = result["benchmark"]
    if benchmark is None:
        return "-"
    allowed = compared(result, level)
    if count:
        known = published_with_references(benchmark, level, count, method)
    else:
        name = method.removesuffix("+")
        known = None
        if any(allowed) and name in METHODS:
            auroc, second, f1 = published(benchmark, level, name)
            known = ((auroc, math.nan), (second, math.nan), (f1, math.nan))
    if known is None:
        return "-"
    return _cell([pair if use else (math.nan, math.nan) for pair, use in zip(known, allowed)])


def _deviation(values: np.ndarray) -> float:
    """Standard deviation of several draws, or NaN for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _cell(values: Sequence[tuple[float, float]]) -> str:
    if all(math.isnan(mean) for mean, _ in values):
        return "-"
    texts = []
    for mean, deviation in values:
        spread = "" if math.isnan(deviation) else f" ± {deviation:.1f}"
        texts.append("-" if math.isnan(mean) else f"{mean:.1f}{spread}")
    return f"({', '.join(texts)})"


def reference_table(results: Sequence[dict[str, Any]], name: str, tablefmt: str = "github") -> str | None:
    """
    Format results with references as a table, beside zero-shot and the published results of WinCLIP+ and APRIL-GAN.

    Args:
        results (`Sequence[dict]`): results of [`evaluate_sets`].
        name (`str`): name of this checkpoint, the title of its column.
        tablefmt (`str`, defaults to `"github"`): table format of the tabulate library.

    Returns:
        `str`, *optional*: the table, see [`reference_rows`]. `None` if no result has references.

    Raises:
        ImportError: if tabulate is not installed.
    """
    rows = reference_rows(results)
    if not rows:
        return None
    first, last = 4, 4 + len(REFERENCE_METHODS)
    headers = ["Task", "Datasets", "k", "draws", *REFERENCE_METHODS, name]
    if all(cell == "-" for row in rows for cell in row[first:last]):
        rows, headers = [row[:first] + row[last:] for row in rows], headers[:first] + headers[last:]
    return tabulate_rows(rows, headers, tablefmt)


__all__ = ["REFERENCES_NOTE", "is_zero_shot", "reference_rows", "reference_table"]
