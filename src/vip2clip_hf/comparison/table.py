"""Results of a comparison as records and as one table."""

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..baselines.methods import METHODS
from ..evaluation.tables import TITLES, tabulate_rows
from ..models.vip2clip.arguments_vip2clip import LABELS
from ..utils.csv_cells import safe_cell
from ..utils.text import shown
from .competitors import Competitor
from .measurement import Measurement


if TYPE_CHECKING:
    from datasets import Dataset


# Metrics of the table. `results.json` contains the same.
QUALITY = ("image_auroc", "pixel_auroc", "pixel_aupro")
NO_LABELS = "the photos have no labels"


def describe_method(
    competitor: Competitor, measurement: Measurement | None, num_references: int | None
) -> dict[str, Any]:
    """
    Describe what a method computed, as JSON types.

    Args:
        competitor ([`Competitor`]): the method.
        measurement ([`Measurement`], *optional*): what it computed. `None` if it did not run.
        num_references (`int`, *optional*): smallest number of references of a category. `None` for zero-shot.

    Returns:
        `dict[str, Any]`: the record. `reason` says why a method did not run, `undefined` why a metric is `None`.
        Times are in milliseconds per photo: `tower_ms` of the shared vision tower (`None` if the method ran on its
        own), `own_ms` of the rest, and `ms`, the sum. `map_maximum` is the number of maps that the method adds up.
    """
    known = METHODS.get(competitor.key)
    record: dict[str, Any] = {
        "method": competitor.key,
        "name": competitor.name,
        "weights": competitor.weights,
        "paper": competitor.paper,
        "code": None if known is None else known.code,
        "licence": None if known is None else known.licence,
        "reason": competitor.reason,
    }
    if measurement is None:
        return record
    record["references"] = num_references or 0
    record["image_size"] = getattr(competitor.subject, "image_size", None)
    undefined: dict[str, str] = dict.fromkeys(QUALITY, NO_LABELS)
    values: dict[str, float | None] = dict.fromkeys(QUALITY)
    if measurement.metrics is not None:
        mean = measurement.metrics.compute()["mean"]
        values = {name: None if math.isnan(mean[name]) else mean[name] for name in QUALITY}
        undefined = {name: mean["undefined"].get(name, "") for name in QUALITY if values[name] is None}
    shared = [name for name in measurement.shared_with if name != competitor.name]
    per_photo = 1000 / max(1, measurement.num_timed)
    return {
        **record,
        **values,
        "undefined": undefined,
        "shared_tower": shared,
        "tower_ms": measurement.tower_seconds * per_photo if shared else None,
        "own_ms": measurement.own_seconds * per_photo,
        "ms": (measurement.tower_seconds + measurement.own_seconds) * per_photo,
        "peak_memory": measurement.peak_memory,
        "map_maximum": measurement.map_maximum,
    }


def comparison_table(records: Sequence[dict[str, Any]], tablefmt: str = "simple") -> str:
    """
    Format a comparison as a table. A column without any value is left out.

    Args:
        records (`Sequence[dict[str, Any]]`): results of `describe_method`.
        tablefmt (`str`, defaults to `"simple"`): table format of the tabulate library.

    Returns:
        `str`: the table, one row per method, metrics in percent.

    Raises:
        ImportError: if tabulate is not installed.
    """
    ran = [one for one in records if one["reason"] is None]
    columns: dict[str, list[str]] = {"method": [one["name"] for one in records]}
    columns["weights"] = [one["weights"] if one["reason"] is None else "-" for one in records]
    if any(one["references"] for one in ran):
        columns["references"] = [str(one["references"]) if one["reason"] is None else "-" for one in records]
    for metric in QUALITY:
        if any(one[metric] is not None for one in ran):
            columns[TITLES[metric]] = [_number(one.get(metric), 100) for one in records]
    if any(one["tower_ms"] is not None for one in ran):
        columns["shared tower, ms"] = [_number(one.get("tower_ms")) for one in records]
        columns["own part, ms"] = [_number(one.get("own_ms")) for one in records]
    columns["ms per photo"] = [_number(one.get("ms")) for one in records]
    columns["memory, MB"] = [_number(one.get("peak_memory"), 1 / 2**20, 0) for one in records]
    if len(ran) < len(records):
        columns["not run"] = [one["reason"] or "" for one in records]
    headers = list(columns)
    right = [number for number, name in enumerate(headers) if name not in ("method", "weights", "not run")]
    return tabulate_rows(list(zip(*columns.values())), headers, tablefmt, right)


def _number(value: float | None, factor: float = 1.0, digits: int = 1) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def scores_csv(dataset: "Dataset", measurements: Sequence[Measurement]) -> str:
    """
    Write the scores as CSV: one row per photo, one column per method.

    Args:
        dataset (`datasets.Dataset`): the photos.
        measurements (`Sequence[Measurement]`): what the methods computed.

    Returns:
        `str`: the rows. A score is empty if the photo could not be read.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "category", "label", *(one.competitor.key for one in measurements)])
    for number, row in enumerate(zip(*(dataset[name] for name in ("image_id", "category", "label")))):
        image_id, category, label = row
        scores = [float(one.scores[number]) for one in measurements]
        named = (image_id, category, "" if label is None else LABELS[label])
        writer.writerow([*map(safe_cell, named), *("" if math.isnan(one) else repr(one) for one in scores)])
    return text.getvalue()


def markdown_page(result: dict[str, Any]) -> str:
    """
    Write the table and its notes as a Markdown page.

    Args:
        result (`dict[str, Any]`): result of [`compare_methods`].

    Returns:
        `str`: the page.
    """
    notes = "\n".join(f"- {shown(line)}" for line in result["notes"])
    title = f"# Comparison of methods on {shown(result['photos'])} ({result['num_images']} photos)"
    papers = "\n".join(f"- {one['name']}: {one['paper']}" for one in result["methods"])
    return "\n\n".join([title, comparison_table(result["methods"], "github"), notes, "## Papers", papers]) + "\n"


__all__ = [
    "QUALITY",
    "comparison_table",
    "describe_method",
    "markdown_page",
    "scores_csv",
]
