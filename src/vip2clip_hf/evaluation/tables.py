"""Tables and reports of results: per category, and in the form of the paper's Tables 1 and 2.

A result is a dict returned by [`evaluate_model`], with three more keys: `name` of the dataset, `benchmark` (name or
`None`) and `trained_on` (list of reasons from [`find_training_overlap`], usually empty).
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from ..data.benchmarks.registry import BENCHMARKS
from ..utils.csv_cells import safe_cell
from ..utils.extras import extra
from .metrics import METRICS
from .published import METHODS, TAKEN_OVER, TRIPLES, published, published_average, published_sets


TITLES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_aupro": "AUPRO",
    "pixel_f1": "pixel F1",
}
COUNTS = ("num_images", "num_anomalous_images", "num_maps", "num_pixels", "num_anomalous_pixels", "num_regions")
THRESHOLDS = ("image_f1_threshold", "pixel_f1_threshold")
LEVEL_TITLES = {"image": "Image-level (AUROC, AP, F1)", "pixel": "Pixel-level (AUROC, PRO, F1)"}
NUMBERS = {"industrial": "Table 1", "medical": "Table 2"}
SEEN = "†"
LEGEND = (
    "Metrics are in percent; a dash marks an undefined metric. AP is average precision, F1 is the largest F1 over all "
    "thresholds, and PRO (AUPRO) is the area under the per-region overlap curve. C is the number of categories. "
    "AVERAGE is the mean over the datasets of a table."
)
PUBLISHED_NOTE = (
    "The last column contains the results of this evaluation. The other results are from the paper "
    "(arXiv:2505.17692). Those marked with * are from the publication of the method, as in the paper."
)


def _percent(value: float) -> str:
    """Format a metric in percent with one decimal, as in the paper, or as a dash if it is undefined."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _cell(values: Sequence[float]) -> str:
    """Format a cell of the paper's tables: three percentages in parentheses."""
    return "(" + ", ".join("-" if math.isnan(value) else f"{value:.1f}" for value in values) + ")"


def _triple(metrics: dict[str, Any], level: str) -> list[float]:
    return [100 * metrics[metric] for metric in TRIPLES[level]]


def _has_metrics(result: dict[str, Any], level: str) -> bool:
    """Whether at least one metric of the level is defined."""
    return not all(math.isnan(value) for value in _triple(result["mean"], level))


def _mean(triples: Sequence[Sequence[float]]) -> list[float]:
    """Mean of each position, without undefined values."""
    means = []
    for values in zip(*triples):
        defined = [value for value in values if not math.isnan(value)]
        means.append(sum(defined) / len(defined) if defined else math.nan)
    return means


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
    return _tabulate(rows, headers, tablefmt, right=range(1, len(headers)))


def comparison_rows(results: Sequence[dict[str, Any]], methods: Sequence[str] = METHODS) -> dict[str, list[list[str]]]:
    """
    Create the rows of tables in the form of the paper's Tables 1 and 2.

    A row contains task, dataset, number of categories, the published results of each method, and the results of this
    checkpoint. The row AVERAGE is the mean over the datasets shown, without those the checkpoint was trained on. For
    the published methods it is the mean over the same datasets, or the printed average if these are all datasets of
    the table.

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
    by_benchmark = {result["benchmark"]: result for result in results if result["benchmark"] is not None}
    for domain in NUMBERS:
        for level in TRIPLES:
            names = [
                name
                for name in published_sets(domain, level)
                if name in by_benchmark and _has_metrics(by_benchmark[name], level)
            ]
            rows = []
            for name in names:
                result, benchmark = by_benchmark[name], BENCHMARKS[name]
                count, total = len(result["categories"]), len(benchmark.categories)
                rows.append(
                    [
                        benchmark.title + (SEEN if result["trained_on"] else ""),
                        str(count) if count == total else f"{count} of {total}",
                        *(
                            _cell(published(name, level, method)) + "*" * ((method, name) in TAKEN_OVER)
                            for method in methods
                        ),
                        _cell(_triple(result["mean"], level)),
                    ]
                )
            unseen = [name for name in names if not by_benchmark[name]["trained_on"]]
            if unseen:
                means = [_cell(published_average(unseen, domain, level, method)) for method in methods]
                ours = _mean([_triple(by_benchmark[name]["mean"], level) for name in unseen])
                rows.append(["AVERAGE", "-", *means, _cell(ours)])
            _append(tables, domain, level, rows)
    own = [result for result in results if result["benchmark"] is None]
    for level in TRIPLES:
        shown = [result for result in own if _has_metrics(result, level)]
        rows = [
            [
                result["name"] + (SEEN if result["trained_on"] else ""),
                str(len(result["categories"])),
                _cell(_triple(result["mean"], level)),
            ]
            for result in shown
        ]
        own_unseen = [result for result in shown if not result["trained_on"]]
        if len(own_unseen) > 1:
            rows.append(["AVERAGE", "-", _cell(_mean([_triple(result["mean"], level) for result in own_unseen]))])
        _append(tables, "own", level, rows)
    return tables


def _append(tables: dict[str, list[list[str]]], domain: str, level: str, rows: list[list[str]]) -> None:
    for number, row in enumerate(rows):
        tables.setdefault(domain, []).append([LEVEL_TITLES[level] if number == 0 else "", *row])


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
        tables[domain] = _tabulate(rows, headers, tablefmt)
    return tables


def _tabulate(rows: Sequence[Sequence[object]], headers: list[str], tablefmt: str, right: Sequence[int] = ()) -> str:
    with extra("train", "Printing tables of results"):
        from tabulate import tabulate

    align = ["right" if column in right else "left" for column in range(len(headers))]
    return tabulate(rows, headers, tablefmt=tablefmt, disable_numparse=True, colalign=align)


def notes(results: Sequence[dict[str, Any]], with_average: bool = True) -> list[str]:
    """
    Explain the marks in the tables: datasets the checkpoint was trained on, and undefined metrics.

    Args:
        results (`Sequence[dict]`): results as described in the module.
        with_average (`bool`, defaults to `True`): whether the tables contain the row AVERAGE.

    Returns:
        `list[str]`: the notes.
    """
    found = [f"{SEEN} {result['name']}: {reason}." for result in results for reason in result["trained_on"]]
    if found:
        average = " AVERAGE excludes these datasets for all methods." if with_average else ""
        found.append(f"{SEEN} These results are not zero-shot.{average}")
    for result in results:
        for metric, reason in result["mean"]["undefined"].items():
            if math.isnan(result["mean"][metric]):
                found.append(f"{result['name']}: {TITLES[metric]} is undefined: {reason}.")
            else:
                found.append(f"{result['name']}: the mean {TITLES[metric]} excludes some categories: {reason}.")
    return found


def markdown_report(results: Sequence[dict[str, Any]], name: str, settings: Sequence[str] = ()) -> str:
    """
    Write all tables as a Markdown page.

    Args:
        results (`Sequence[dict]`): results as described in the module.
        name (`str`): name of the checkpoint.
        settings (`Sequence[str]`, *optional*): paragraphs about the evaluation, at the start of the page.

    Returns:
        `str`: the page.

    Raises:
        ImportError: if tabulate is not installed.
    """
    parts = [f"# Evaluation of {name}", LEGEND, *settings]
    for domain, table in comparison_tables(results, name).items():
        if domain == "own":
            parts += ["## Other datasets", table]
        else:
            title = f"## {domain.capitalize()} datasets, as in {NUMBERS[domain]} of the paper"
            parts += [title, PUBLISHED_NOTE, table]
    for result in results:
        parts += [f"## Categories of {result['name']}", category_table(result, "github")]
    if lines := notes(results):
        parts += ["## Notes", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def latex_report(results: Sequence[dict[str, Any]], name: str) -> str:
    """
    Write the comparison with the published results as LaTeX tables, for the package booktabs.

    Args:
        results (`Sequence[dict]`): results as described in the module.
        name (`str`): name of the checkpoint.

    Returns:
        `str`: the tables, with notes as comments.

    Raises:
        ImportError: if tabulate is not installed.
    """
    parts = [f"% {line}" for line in notes(results)]
    for domain, table in comparison_tables(results, name, "latex_booktabs").items():
        parts += [f"% {NUMBERS.get(domain, 'Other datasets')}", table]
    return "\n".join(parts) + "\n"


def csv_report(results: Sequence[dict[str, Any]]) -> str:
    """
    Write the metrics, thresholds and counts as CSV.

    Args:
        results (`Sequence[dict]`): results as described in the module.

    Returns:
        `str`: CSV with one row per category, and one row `MEAN` per dataset. Metrics are in [0, 1], and empty if
        undefined.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "category", *METRICS, *THRESHOLDS, *COUNTS, "trained_on"])
    for result in results:
        for category, found in [*result["categories"].items(), ("MEAN", result["mean"])]:
            values = [found.get(key, "") for key in (*METRICS, *THRESHOLDS, *COUNTS)]
            values = ["" if isinstance(value, float) and math.isnan(value) else value for value in values]
            names, trained_on = (result["name"], category), "; ".join(result["trained_on"])
            writer.writerow([*map(safe_cell, names), *values, safe_cell(trained_on)])
    return text.getvalue()


__all__ = ["category_table", "comparison_rows", "comparison_tables", "csv_report", "latex_report", "markdown_report"]
