"""Results as tables: per category, and in the form of the paper's Tables 1 and 2 beside the published figures.

A result is what `evaluate_model` gives, with `name`, `benchmark` (or None) and `trained_on` (sentences, see
[`vip2clip_hf.data.find_training_overlap`]) beside it.
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from ..data.benchmarks.registry import BENCHMARKS
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
PUBLISHED_NOTE = (
    "The six columns before the last are published in the paper (arXiv:2505.17692); * it has taken over from the "
    "method's own publication."
)


def percent(value: float) -> str:
    """In percent with one decimal, as the paper has them; a dash where undefined."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _cell(values: Sequence[float]) -> str:
    """A triple of percentages."""
    return "(" + ", ".join("-" if math.isnan(value) else f"{value:.1f}" for value in values) + ")"


def _triple(metrics: dict[str, Any], level: str) -> list[float]:
    return [100 * metrics[metric] for metric in TRIPLES[level]]


def _mean(triples: Sequence[Sequence[float]]) -> list[float]:
    means = []
    for values in zip(*triples):
        defined = [value for value in values if not math.isnan(value)]
        means.append(sum(defined) / len(defined) if defined else math.nan)
    return means


def category_table(result: dict[str, Any], tablefmt: str = "simple") -> str:
    """One row a category and their mean, the seven metrics in percent."""
    rows = [
        [name, found["num_images"], *(percent(found[metric]) for metric in METRICS)]
        for name, found in result["categories"].items()
    ]
    if len(rows) > 1:
        total = sum(found["num_images"] for found in result["categories"].values())
        rows.append(["MEAN", total, *(percent(result["mean"][metric]) for metric in METRICS)])
    headers = ["category", "images", *(TITLES[metric] for metric in METRICS)]
    return _tabulate(rows, headers, tablefmt, right=range(1, len(headers)))


def comparison_rows(results: Sequence[dict[str, Any]], methods: Sequence[str] = METHODS) -> dict[str, list[list[str]]]:
    """
    Rows in the form of the paper's Tables 1 and 2: task, data set, number of categories, one triple a method, one
    triple of this checkpoint. The row AVERAGE is over the sets shown that the checkpoint was not trained on, for the
    methods likewise; where that is the whole table the printed averages are taken.

    Returns:
        `dict` with the rows by `"industrial"`, `"medical"` and `"own"`, those that have any.
    """
    tables: dict[str, list[list[str]]] = {}
    by_benchmark = {result["benchmark"]: result for result in results if result["benchmark"] is not None}
    for domain in NUMBERS:
        for level in TRIPLES:
            names = [
                name
                for name in published_sets(domain, level)
                if name in by_benchmark and not all(map(math.isnan, _triple(by_benchmark[name]["mean"], level)))
            ]
            rows = []
            for name in names:
                result, benchmark = by_benchmark[name], BENCHMARKS[name]
                count, whole = len(result["categories"]), len(benchmark.categories)
                rows.append(
                    [
                        benchmark.title + (SEEN if result["trained_on"] else ""),
                        str(count) if count == whole else f"{count} of {whole}",
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
        shown = [result for result in own if not all(map(math.isnan, _triple(result["mean"], level)))]
        rows = [
            [
                result["name"] + (SEEN if result["trained_on"] else ""),
                str(len(result["categories"])),
                _cell(_triple(result["mean"], level)),
            ]
            for result in shown
        ]
        unseen = [result for result in shown if not result["trained_on"]]
        if len(unseen) > 1:
            rows.append(["AVERAGE", "-", _cell(_mean([_triple(result["mean"], level) for result in unseen]))])
        _append(tables, "own", level, rows)
    return tables


def _append(tables: dict[str, list[list[str]]], domain: str, level: str, rows: list[list[str]]):
    for number, row in enumerate(rows):
        tables.setdefault(domain, []).append([LEVEL_TITLES[level] if number == 0 else "", *row])


def comparison_tables(
    results: Sequence[dict[str, Any]], name: str, tablefmt: str = "github", methods: Sequence[str] = METHODS
) -> dict[str, str]:
    """[`comparison_rows`] as text; `name` heads the column of this checkpoint, `tablefmt` is tabulate's."""
    tables = {}
    for domain, rows in comparison_rows(results, methods).items():
        headers = ["Task", "Datasets", "C", *(methods if domain != "own" else ()), name]
        tables[domain] = _tabulate(rows, headers, tablefmt)
    return tables


def _tabulate(rows: list, headers: list[str], tablefmt: str, right: Sequence[int] = ()) -> str:
    with extra("train", "Printing tables of results"):
        from tabulate import tabulate

    align = ["right" if column in right else "left" for column in range(len(headers))]
    return tabulate(rows, headers, tablefmt=tablefmt, disable_numparse=True, colalign=align)


def notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """What has to be known to read the tables."""
    found = [f"{SEEN} {result['name']}: {reason}." for result in results for reason in result["trained_on"]]
    if found:
        found.append(f"{SEEN} These figures are not zero-shot; AVERAGE leaves them out, of all methods.")
    for result in results:
        for metric, reason in result["mean"]["undefined"].items():
            found.append(f"{result['name']}: {TITLES[metric]} is undefined: {reason}.")
    return found


def markdown_report(results: Sequence[dict[str, Any]], name: str, settings: Sequence[str] = ()) -> str:
    """All tables as a Markdown page."""
    parts = [f"# Evaluation of {name}", "In percent.", *settings]
    for domain, table in comparison_tables(results, name).items():
        if domain == "own":
            parts += ["## Own data", table]
        else:
            title = f"## {domain.capitalize()} data sets, as in {NUMBERS[domain]} of the paper"
            parts += [title, PUBLISHED_NOTE, table]
    for result in results:
        parts += [f"## {result['name']} by category", category_table(result, "github")]
    if lines := notes(results):
        parts += ["## Notes", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def latex_report(results: Sequence[dict[str, Any]], name: str) -> str:
    """The comparison as LaTeX tables (package booktabs)."""
    parts = [f"% {line}" for line in notes(results)]
    for domain, table in comparison_tables(results, name, "latex_booktabs").items():
        parts += [f"% {NUMBERS.get(domain, 'Own data')}", table]
    return "\n".join(parts) + "\n"


def csv_report(results: Sequence[dict[str, Any]]) -> str:
    """One row a category and one, MEAN, a data set; values in [0, 1], empty where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "category", *METRICS, *THRESHOLDS, *COUNTS, "trained_on"])
    for result in results:
        for category, found in [*result["categories"].items(), ("MEAN", result["mean"])]:
            values = [found.get(key, "") for key in (*METRICS, *THRESHOLDS, *COUNTS)]
            values = ["" if isinstance(value, float) and math.isnan(value) else value for value in values]
            writer.writerow([result["name"], category, *values, "; ".join(result["trained_on"])])
    return text.getvalue()


__all__ = ["category_table", "comparison_rows", "comparison_tables", "csv_report", "latex_report", "markdown_report"]
