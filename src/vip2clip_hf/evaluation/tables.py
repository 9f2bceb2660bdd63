"""Tables and reports of results: per category, and in the form of the paper's Tables 1 and 2.

A result is a dict returned by [`evaluate_model`], with more keys: `name` of the dataset, `benchmark` (name or `None`),
`trained_on` (list of reasons from [`find_training_overlap`], usually empty) and, to compare it with published results,
`split`.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..data.benchmarks.registry import BENCHMARKS
from ..utils.extras import extra
from ..utils.text import shown
from .category_metrics import METRICS
from .comparison import average, compared, comparison_notes, has_metrics, triple
from .published import METHODS, PUBLISHED, TAKEN_OVER, TRIPLES, published


TITLES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_aupro": "AUPRO",
    "pixel_f1": "pixel F1",
}
LEVEL_TITLES = {"image": "Image-level (AUROC, AP, F1)", "pixel": "Pixel-level (AUROC, PRO, F1)"}
NUMBERS = {"industrial": "Table 1", "medical": "Table 2"}
SEEN, NOT_COMPARED = "†", "‡"


def _percent(value: float) -> str:
    """Format a metric in percent with one decimal, as in the paper, or as a dash if it is undefined."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _cell(values: Sequence[float]) -> str:
    """Format a cell of the paper's tables: three percentages in parentheses, or a dash if there are none."""
    if all(math.isnan(value) for value in values):
        return "-"
    return "(" + ", ".join("-" if math.isnan(value) else f"{value:.1f}" for value in values) + ")"


def category_table(result: dict[str, Any], tablefmt: str = "simple") -> str:
    """
    Format a result as a table with one row per category and their mean. Metrics are in percent.

    Args:
        result (`dict`): result of [`evaluate_model`].
        tablefmt (`str`, defaults to `"simple"`): table format of the tabulate library, such as `"github"`.

    Returns:
        `str`: the table.

    Raises:
        ImportError: if tabulate is not installed.
    """
    rows = [
        [name, found["num_images"], *(_percent(found[metric]) for metric in METRICS)]
        for name, found in result["categories"].items()
    ]
    if len(rows) > 1:
        total = sum(found["num_images"] for found in result["categories"].values())
        rows.append(["MEAN", total, *(_percent(result["mean"][metric]) for metric in METRICS)])
    headers = ["category", "images", *(TITLES[metric] for metric in METRICS)]
    return tabulate_rows(rows, headers, tablefmt, right=range(1, len(headers)))


def comparison_rows(results: Sequence[dict[str, Any]], methods: Sequence[str] = METHODS) -> dict[str, list[list[str]]]:
    """
    Create the rows of tables in the form of the paper's Tables 1 and 2.

    A row contains task, dataset, number of categories, the published results of each method, and the results of this
    checkpoint. Published results are shown only if they can be compared, see `comparison_notes`.

    The row AVERAGE is the mean of each metric over the datasets for which all columns have it, without those the
    checkpoint was trained on. It contains the number of these datasets and of all datasets shown. If these are all
    datasets of the table, the average printed in the paper is shown.

    Args:
        results (`Sequence[dict]`): results as described in the module.
        methods (`Sequence[str]`, defaults to all six): names of the published methods to show.

    Returns:
        `dict[str, list[list[str]]]`: rows of the tables `"industrial"`, `"medical"` and `"own"`, for the tables that
        are not empty. The table `"own"` has no published results.

    Raises:
        ValueError: if a method is not in the paper.
    """
    tables: dict[str, list[list[str]]] = {}
    results = [result for result in results if not result.get("references")]  # these have a table of their own
    names = [result["benchmark"] for result in results]
    for domain in (*NUMBERS, "own"):
        for level in TRIPLES:
            shown_results = [
                result for result in results if has_metrics(result, level) and _domain(result["benchmark"]) == domain
            ]
            order = [*PUBLISHED[level], *BENCHMARKS]
            if domain != "own":
                shown_results.sort(key=lambda result: order.index(result["benchmark"]))
            rows: list[list[str]] = []
            counted: dict[str, dict[str, Any]] = {}
            for result in shown_results:
                repeated = names.count(result["benchmark"]) > 1
                allowed = [True] * 3 if domain == "own" else compared(result, level)
                rows.append(_row(result, level, () if domain == "own" else methods, allowed, repeated))
                if any(allowed) and not result["trained_on"]:
                    # A benchmark counts once.
                    counted.setdefault(result["benchmark"] or result["name"], result)
            columns, numbers = average(
                list(counted.values()), level, () if domain == "own" else methods, as_published=domain != "own"
            )
            if any(numbers) and (domain != "own" or len(counted) > 1):
                each = numbers[:1] if len(set(numbers)) == 1 else numbers
                of = f"{', '.join(map(str, each))} of {len(shown_results)}"
                rows.append(["AVERAGE", of, *map(_cell, columns)])
            for number, row in enumerate(rows):
                tables.setdefault(domain, []).append([LEVEL_TITLES[level] if number == 0 else "", *row])
    return tables


def _domain(benchmark: str | None) -> str:
    return "own" if benchmark is None else BENCHMARKS[benchmark].domain


def _row(
    result: dict[str, Any], level: str, methods: Sequence[str], allowed: Sequence[bool], repeated: bool
) -> list[str]:
    """Dataset, categories, and a cell for each method and for the result."""
    name, benchmark = result["name"], result["benchmark"]
    title, count, cells = shown(name), str(len(result["categories"])), []
    if benchmark is not None:
        title = BENCHMARKS[benchmark].title + (f" ({shown(name)})" if repeated else "")
        total = len(BENCHMARKS[benchmark].categories)
        count = count if count == str(total) else f"{count} of {total}"
        for method in methods:
            known = published(benchmark, level, method) if any(allowed) else [math.nan] * 3
            cell = _cell([value if use else math.nan for value, use in zip(known, allowed)])
            cells.append(cell + "*" * ((method, benchmark) in TAKEN_OVER and any(allowed)))
    marks = SEEN * bool(result["trained_on"]) + NOT_COMPARED * (not all(allowed))
    return [title + marks, count, *cells, _cell(triple(result["mean"], level, as_published=benchmark is not None))]


def comparison_tables(
    results: Sequence[dict[str, Any]], name: str, tablefmt: str = "github", methods: Sequence[str] = METHODS
) -> dict[str, str]:
    """
    Format results as tables in the form of the paper's Tables 1 and 2, next to the published results.

    Args:
        results (`Sequence[dict]`): results of [`evaluate_model`], with `name`, `benchmark` and `trained_on`.
        name (`str`): name of this checkpoint, the title of its column.
        tablefmt (`str`, defaults to `"github"`): table format of the tabulate library.
        methods (`Sequence[str]`, defaults to all six): names of the published methods to show.

    Returns:
        `dict[str, str]`: tables by `"industrial"`, `"medical"` and `"own"`, see `comparison_rows`.

    Raises:
        ImportError: if tabulate is not installed.
        ValueError: if a method is not in the paper.
    """
    tables = {}
    for domain, rows in comparison_rows(results, methods).items():
        headers = ["Task", "Datasets", "C", *(methods if domain != "own" else ()), name]
        tables[domain] = tabulate_rows(rows, headers, tablefmt)
    return tables


def tabulate_rows(
    rows: Sequence[Sequence[object]], headers: list[str], tablefmt: str, right: Sequence[int] = ()
) -> str:
    """
    Format a table.

    Args:
        rows (`Sequence[Sequence[object]]`): its rows.
        headers (`list[str]`): titles of the columns.
        tablefmt (`str`): table format of the tabulate library.
        right (`Sequence[int]`, defaults to `()`): columns to align to the right.

    Returns:
        `str`: the table.

    Raises:
        ImportError: if tabulate is not installed.
    """
    with extra("train", "Printing tables of results"):
        from tabulate import tabulate

    align = ["right" if column in right else "left" for column in range(len(headers))]
    rows = [[shown(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    headers = list(map(shown, headers))
    return tabulate(rows, headers, tablefmt=tablefmt, disable_numparse=True, colalign=align)


def notes(results: Sequence[dict[str, Any]], with_average: bool = True) -> list[str]:
    """
    Explain the marks in the tables: datasets the checkpoint was trained on, results that are not compared with
    published ones, results that are not known to be zero-shot, and undefined metrics.

    Args:
        results (`Sequence[dict]`): results as described in the module.
        with_average (`bool`, defaults to `True`): whether the tables contain published results and the row AVERAGE.

    Returns:
        `list[str]`: the notes.
    """
    found = list(
        dict.fromkeys(
            f"{SEEN} {shown(result.get('dataset') or result['name'])}: {reason}."
            for result in results
            for reason in result["trained_on"]
        )
    )
    if found:
        average_note = " AVERAGE excludes these datasets for all methods." if with_average else ""
        found.append(f"{SEEN} These results are not zero-shot.{average_note}")
    zero_shot = {result["benchmark"] for result in results if not result.get("references")}
    for result in results if with_average else ():
        if result.get("references") and result["benchmark"] in zero_shot:
            continue  # the reasons are those of the zero-shot result
        found += [f"{NOT_COMPARED} {shown(result['name'])}, {reason}." for reason in comparison_notes(result)]
    for result in results:
        name, claim = shown(result["name"]), result.get("zero_shot") or ""
        if claim.startswith("not verified") and not result.get("references"):
            found.append(f"{name}: zero-shot is {shown(claim)}.")
        for metric, reason in result["mean"]["undefined"].items():
            if metric not in TITLES:  # AUPRO in the other convention
                continue
            if math.isnan(result["mean"][metric]):
                found.append(f"{name}: {TITLES[metric]} is undefined: {reason}.")
            else:
                found.append(f"{name}: the mean {TITLES[metric]} excludes some categories: {reason}.")
    return found


__all__ = ["category_table", "comparison_rows", "comparison_tables", "notes", "tabulate_rows"]
