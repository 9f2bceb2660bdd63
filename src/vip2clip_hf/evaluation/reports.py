"""Reports of an evaluation: Markdown, LaTeX and CSV. Each contains the settings of the evaluation."""

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from ..data.benchmarks.registry import BENCHMARKS
from ..utils.csv_cells import safe_cell
from ..utils.text import shown
from .category_metrics import AUPROS, METRICS, RATES, THRESHOLDS
from .comparison import PUBLISHED_CONVENTION, PUBLISHED_FPR_LIMIT, differences, mask_threshold, metric_differences
from .published import TRIPLES
from .reference_tables import REFERENCES_NOTE, reference_table
from .tables import NUMBERS, category_table, comparison_tables, notes


COUNTS = ("num_images", "num_anomalous_images", "num_maps", "num_pixels", "num_anomalous_pixels", "num_regions")
SETTINGS = ("split", "fpr_limit", "aupro_convention", "dtype", "image_size", "mask_threshold")
LEGEND = (
    "Metrics are in percent; a dash marks an undefined metric, or a published result that cannot be compared. AP is "
    "average precision, F1 is the largest F1 over all thresholds, and PRO (AUPRO) is the area under the per-region "
    "overlap curve. C is the number of categories. AVERAGE is the mean of each metric over the datasets for which all "
    "columns have it; its column C has the number of these datasets, by metric if they differ, and of all shown."
)
PUBLISHED_NOTE = (
    "The last column contains the results of this evaluation. The other results are from the paper "
    "(arXiv:2505.17692). Those marked with * are from the publication of the method, as in the paper. PRO is computed "
    f"as in the paper, with the 200 thresholds of the authors' released code (convention {PUBLISHED_CONVENTION!r}). "
    f"The paper integrates it up to a false positive rate of {PUBLISHED_FPR_LIMIT:g}."
)
_THRESHOLDS = {
    "release": "with the 200 thresholds of the authors' released code",
    "exact": "with every value as a threshold",
}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          **{character: f"\\{character}" for character in "&%$#_{}"}}  # fmt: skip


def settings_of(result: dict[str, Any]) -> dict[str, Any]:
    """
    Collect the settings of a result.

    Args:
        result (`dict`): result as described in [`vip2clip_hf.evaluation.tables`].

    Returns:
        `dict[str, Any]`: `split`, `fpr_limit`, `aupro_convention`, `dtype`, `image_size` and `mask_threshold`; `None`
        if not recorded.
    """
    found = {name: (result.get("settings") or {}).get(name) for name in SETTINGS}
    return {**found, "split": result.get("split"), "mask_threshold": mask_threshold(result)}


def settings_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """
    Describe the settings of results, one line for each group of datasets with the same settings.

    Args:
        results (`Sequence[dict]`): results as described in [`vip2clip_hf.evaluation.tables`].

    Returns:
        `list[str]`: the lines.
    """
    groups: dict[str, list[str]] = {}
    for result in results:
        settings = settings_of(result)
        text = "their settings are not recorded."
        if settings["fpr_limit"] is not None:
            threshold, convention = settings["mask_threshold"], settings["aupro_convention"]
            size = "not recorded" if settings["image_size"] is None else "{0} x {0}".format(settings["image_size"])
            split = "" if settings["split"] is None else f"split {shown(settings['split'])}, "
            options = result.get("mask_options") or {}
            inverted = bool(options.get("invert"))
            dtype = "" if settings["dtype"] is None else f", {settings['dtype']}"  # of a model
            masks = "" if threshold is None else f", mask values {'up to' if inverted else 'above'} {threshold:g} are "
            masks += "" if threshold is None else f"anomalous{' (inverted)' if inverted else ''}"
            if options.get("channel") not in (None, "auto"):
                masks += f", mask channel {options['channel']}"
            text = (
                f"{split}image size {size}{dtype}{masks}. AUPRO is integrated up to a false "
                f"positive rate of {settings['fpr_limit']:g}, {_THRESHOLDS[convention]}."
            )
        groups.setdefault(text, []).append(shown(result["name"]))
    return [f"Settings of {', '.join(names)}: {text}" for text, names in groups.items()]


def dataset_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """
    Describe the datasets: whether the results are zero-shot, the licence, and known peculiarities.

    Args:
        results (`Sequence[dict]`): results as described in [`vip2clip_hf.evaluation.tables`].

    Returns:
        `list[str]`: one line per dataset.
    """
    lines = []
    zero_shot = {result["name"] for result in results if not result.get("references")}
    for result in results:
        if result.get("references") and result.get("dataset") in zero_shot:
            continue  # described with the zero-shot result
        claim = result.get("zero_shot")
        if claim is None:
            claim = (
                f"not zero-shot: {'; '.join(result['trained_on'])}" if result["trained_on"] else "zero-shot: not known"
            )
        if count := result.get("references"):
            claim = f"with {count} references per category. Without them: {claim}"
        parts = [f"{shown(result['name'])}: {shown(claim)}."]
        if result["benchmark"] is not None:
            benchmark = BENCHMARKS[result["benchmark"]]
            parts.append(f"Licence: {benchmark.licence or 'not established'}. Cite: {benchmark.citation}")
            if not result.get("remarks"):
                parts.append(f"The paper evaluates {benchmark.evaluated}.")
        elif result.get("licence"):
            parts.append(f"Licence: {shown(result['licence'])}.")
        parts += map(shown, result.get("remarks") or ())
        lines.append(" ".join(parts))
    return lines


def not_compared(result: dict[str, Any]) -> dict[str, list[str]] | None:
    """
    Explain for a JSON file what is not compared with published results.

    Args:
        result (`dict`): result as described in [`vip2clip_hf.evaluation.tables`].

    Returns:
        `dict[str, list[str]]`, *optional*: reasons by level, `"image"` and `"pixel"`, empty if all is compared. `None`
        for other data than a benchmark.
    """
    if result["benchmark"] is None:
        return None
    return {
        level: differences(result, level)
        or [f"{name}: {why}" for name, why in metric_differences(result, level).items()]
        for level in TRIPLES
    }


def markdown_report(results: Sequence[dict[str, Any]], name: str) -> str:
    """
    Write all tables as a Markdown page.

    Args:
        results (`Sequence[dict]`): results as described in [`vip2clip_hf.evaluation.tables`].
        name (`str`): name of the checkpoint.

    Returns:
        `str`: the page.

    Raises:
        ImportError: if tabulate is not installed.
    """
    settings = "\n".join(f"- {line}" for line in settings_lines(results))
    parts = [f"# Evaluation of {shown(name)}", LEGEND, settings]
    for domain, table in comparison_tables(results, name).items():
        if domain == "own":
            parts += ["## Other datasets", table]
        else:
            title = f"## {domain.capitalize()} datasets, as in {NUMBERS[domain]} of the paper"
            parts += [title, PUBLISHED_NOTE, table]
    if (few := reference_table(results, name)) is not None:
        parts += ["## With references", REFERENCES_NOTE, few]
    for result in results:
        parts += [
            f"## Categories of {shown(result['name'])}",
            category_table(result, "github"),
            *settings_lines([result]),
        ]
    if lines := notes(results):
        parts += ["## Notes", "\n".join(f"- {line}" for line in lines)]
    parts += ["## Datasets", "\n".join(f"- {line}" for line in dataset_lines(results))]
    return "\n\n".join(parts) + "\n"


def latex_report(results: Sequence[dict[str, Any]], name: str) -> str:
    """
    Write the comparison with the published results as LaTeX tables, for the package booktabs.

    Args:
        results (`Sequence[dict]`): results as described in [`vip2clip_hf.evaluation.tables`].
        name (`str`): name of the checkpoint.

    Returns:
        `str`: the tables, with settings and notes as text below them.

    Raises:
        ImportError: if tabulate is not installed.
    """
    parts = []
    for domain, table in comparison_tables(results, name, "latex_booktabs").items():
        parts += [f"% {NUMBERS.get(domain, 'Other datasets')}", table]
        if domain != "own":
            parts.append(_latex_text(PUBLISHED_NOTE))
    if (few := reference_table(results, name, "latex_booktabs")) is not None:
        parts += ["% With references", few, _latex_text(REFERENCES_NOTE)]
    parts += map(_latex_text, [LEGEND, *settings_lines(results), *notes(results), *dataset_lines(results)])
    return "\n".join(parts) + "\n"


def _latex_text(line: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in line)
    return f"\n{{\\footnotesize {re.sub(r'[ ]+', ' ', escaped)}\\par}}"


def csv_report(results: Sequence[dict[str, Any]]) -> str:
    """
    Write the metrics, thresholds, counts and settings as CSV.

    Args:
        results (`Sequence[dict]`): results as described in [`vip2clip_hf.evaluation.tables`].

    Returns:
        `str`: CSV with one row per category, and one row `MEAN` per dataset. Metrics are in [0, 1], and empty if
        undefined. Values greater than a threshold are anomalous.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = (*METRICS, *AUPROS.values(), *THRESHOLDS, *COUNTS)
    writer.writerow(["dataset", "category", *numbers, *SETTINGS, "trained_on", "references", "reference_seed", *RATES])
    for result in results:
        settings = settings_of(result).values()
        for category, found in [*result["categories"].items(), ("MEAN", result["mean"])]:
            values = [*(found.get(key) for key in numbers), *settings]
            cells = [safe_cell(value) if isinstance(value, str) else _number(value) for value in values]
            names = (result.get("dataset") or result["name"], category)
            trained_on = "; ".join(result["trained_on"])
            used = [found.get("references", result.get("references")), result.get("reference_seed")]
            rates = [_number(value) for value in (*used, *(found.get(rate) for rate in RATES))]
            writer.writerow([*map(safe_cell, names), *cells, safe_cell(trained_on), *rates])
    return text.getvalue()


def _number(value: float | None) -> str:
    """Number with all its digits, or empty."""
    return "" if value is None or math.isnan(value) else repr(value)


__all__ = [
    "csv_report",
    "dataset_lines",
    "latex_report",
    "markdown_report",
    "not_compared",
    "settings_lines",
    "settings_of",
]
