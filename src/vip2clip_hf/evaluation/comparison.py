"""Which results can be compared with the published results, and the mean over datasets.

A published result stands beside a result only if both are of the same split, categories and number of images, and each
metric only if it is computed in the same way.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..data.benchmarks.registry import BENCHMARKS
from .category_metrics import AUPROS
from .published import PUBLISHED, TRIPLES, published, published_average


# How the published results were computed.
PUBLISHED_SPLIT, PUBLISHED_FPR_LIMIT, PUBLISHED_CONVENTION = "test", 0.3, "release"
# Why AUPRO is not compared, besides the limit of the false positive rate.
_UNKNOWN = "its settings are not recorded"


def triple(metrics: dict[str, Any], level: str, as_published: bool = False) -> list[float]:
    """
    Get the metrics of a cell of the paper's tables.

    Args:
        metrics (`dict`): metrics of a category, or their mean.
        level (`"image"` or `"pixel"`): half of the table.
        as_published (`bool`, defaults to `False`): whether to take AUPRO in the convention of the paper.

    Returns:
        `list[float]`: AUROC, AP (image) or AUPRO (pixel), and F1, in percent.
    """
    names = {"pixel_aupro": AUPROS[PUBLISHED_CONVENTION]} if as_published else {}
    # Results of earlier versions contain one convention only.
    return [100 * metrics.get(names.get(metric, metric), metrics[metric]) for metric in TRIPLES[level]]


def has_metrics(result: dict[str, Any], level: str) -> bool:
    """Whether at least one metric of the level is defined."""
    return not all(math.isnan(value) for value in triple(result["mean"], level))


def differences(result: dict[str, Any], level: str) -> list[str]:
    """
    Compare the data of a result with those of the published results.

    Args:
        result (`dict`): result of a benchmark, see [`vip2clip_hf.evaluation.tables`].
        level (`"image"` or `"pixel"`): half of the table.

    Returns:
        `list[str]`: why the published results are not shown beside this result. Empty if they are.
    """
    name = result["benchmark"]
    benchmark, categories = BENCHMARKS[name], result["categories"]
    if name not in PUBLISHED[level]:
        return [f"the paper has no {level}-level results of this benchmark"]
    split = result.get("split")
    if split != PUBLISHED_SPLIT:
        found = "not recorded" if split is None else repr(split)
        return [f"the split is {found}; the paper evaluates {benchmark.evaluated}"]
    missing = [category for category in benchmark.categories if category not in categories]
    if missing:
        return [f"{len(benchmark.categories) - len(missing)} of {len(benchmark.categories)} categories are evaluated"]
    reasons = []
    total = [0, 0]
    for category, found in categories.items():
        anomalous = found["num_anomalous_images"]
        counts = found["num_images"] - anomalous, anomalous
        total = [one + more for one, more in zip(total, counts)]
        expected = benchmark.expected(category)
        if expected is not None and counts != expected and len(categories) > 1:
            reasons.append(f"{category} has {_counts(counts)} images (published: {_counts(expected)})")
    if tuple(total) != (benchmark.normal, benchmark.anomalous):
        published_counts = _counts((benchmark.normal, benchmark.anomalous))
        reasons.insert(0, f"there are {_counts(total)} images (published: {published_counts})")
    if level == "pixel":
        without = sum(found["num_images"] - found["num_maps"] for found in categories.values())
        if without:
            reasons.append(f"{without} of {sum(total)} images have no mask")
        kept = sum(
            _number(found, "num_small_regions") - _number(found, "num_lost_regions") for found in categories.values()
        )
        if kept:
            reasons.append(
                f"{kept:g} regions smaller than a pixel of the model are kept; the released code loses them"
            )
        threshold = mask_threshold(result)
        # The released code uses 0, also for masks with noise.
        if threshold is not None and threshold not in (0, benchmark.mask_threshold):
            reasons.append(f"mask values above {threshold:g} are anomalous (usual: {benchmark.mask_threshold})")
    return [*reasons[:3], *([f"{len(reasons) - 3} more differences"] if len(reasons) > 3 else [])]


def metric_differences(result: dict[str, Any], level: str) -> dict[str, str]:
    """
    Compare how the metrics of a result and the published ones are computed.

    Args:
        result (`dict`): result of a benchmark, without [`differences`] in its data.
        level (`"image"` or `"pixel"`): half of the table.

    Returns:
        `dict[str, str]`: reason by metric that is not compared.
    """
    mean = result["mean"]
    found = {}
    for metric in TRIPLES[level]:
        name = AUPROS[PUBLISHED_CONVENTION] if metric == "pixel_aupro" else metric
        if name in mean["undefined"] and not math.isnan(mean.get(name, math.nan)):
            found[metric] = "it is undefined for some categories"
    if level == "pixel":
        settings = result.get("settings") or {}
        limit = settings.get("fpr_limit")
        if limit is None or AUPROS[PUBLISHED_CONVENTION] not in mean:
            found["pixel_aupro"] = _UNKNOWN
        elif limit != PUBLISHED_FPR_LIMIT:
            found["pixel_aupro"] = f"the false positive rate limit is {limit:g} (published: {PUBLISHED_FPR_LIMIT:g})"
    return found


def mask_threshold(result: dict[str, Any]) -> int | float | None:
    """Threshold of the masks of a result, or `None` if it is not recorded."""
    for name, key in (("mask_options", "threshold"), ("settings", "mask_threshold")):
        value = (result.get(name) or {}).get(key)
        if value is not None:
            return value
    return None


def comparison_notes(result: dict[str, Any]) -> list[str]:
    """
    Explain why published results are missing beside a result.

    Args:
        result (`dict`): result as described in [`vip2clip_hf.evaluation.tables`].

    Returns:
        `list[str]`: the reasons, one for each half of the table with missing results. Empty for other data than a
        benchmark.
    """
    if result["benchmark"] is None:
        return []
    found = []
    for level in TRIPLES:
        if not has_metrics(result, level):
            continue
        if reasons := differences(result, level):
            found.append(
                f"{level} level: not compared with published results and not in AVERAGE: {'; '.join(reasons)}"
            )
        for metric, reason in metric_differences(result, level).items() if not reasons else ():
            name = {"pixel_aupro": "PRO"}.get(metric, metric.removeprefix(f"{level}_").upper())
            found.append(f"{level} level: {name} is not compared with published results: {reason}")
    return found


def compared(result: dict[str, Any], level: str) -> list[bool]:
    """
    Decide which metrics of a result are compared with the published ones.

    Args:
        result (`dict`): result of a benchmark.
        level (`"image"` or `"pixel"`): half of the table.

    Returns:
        `list[bool]`: one value for each metric of the level, in the order of `TRIPLES`.
    """
    if differences(result, level):
        return [False] * len(TRIPLES[level])
    excluded = metric_differences(result, level)
    return [metric not in excluded for metric in TRIPLES[level]]


def average(
    results: Sequence[dict[str, Any]], level: str, methods: Sequence[str] = (), as_published: bool = False
) -> tuple[list[list[float]], list[int]]:
    """
    Average each metric over the datasets for which it is defined: the published methods over the same ones.

    Args:
        results (`Sequence[dict]`): results of the datasets of one half of a table, without those trained on.
        level (`"image"` or `"pixel"`): half of the table.
        methods (`Sequence[str]`): published methods.
        as_published (`bool`, defaults to `False`): whether only to include metrics that are compared with published
            results.

    Returns:
        `tuple[list[list[float]], list[int]]`: means of each method and, as the last, of the results, in percent; and
        the number of datasets in each metric.
    """
    ours = [triple(result["mean"], level, as_published) for result in results]
    allowed = [compared(result, level) if as_published else [True] * 3 for result in results]
    included = [
        [number for number in range(len(results)) if allowed[number][k] and not math.isnan(ours[number][k])]
        for k in range(3)
    ]
    columns = []
    names = [result["benchmark"] for result in results]
    for method in methods:
        sets = [[names[number] for number in numbers] for numbers in included]
        if sets[0] and sets[0] == sets[1] == sets[2]:
            domain = BENCHMARKS[sets[0][0]].domain
            columns.append(list(published_average(sets[0], domain, level, method)))
        else:
            columns.append([_mean([published(name, level, method)[k] for name in one]) for k, one in enumerate(sets)])
    columns.append([_mean([ours[n][k] for n in numbers]) for k, numbers in enumerate(included)])
    return columns, [len(numbers) for numbers in included]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _counts(counts: Sequence[int]) -> str:
    return f"{counts[0]} normal and {counts[1]} anomalous"


def _number(found: dict[str, Any], name: str) -> float:
    """A count that earlier versions do not record."""
    value = found.get(name)
    return 0 if value is None or math.isnan(value) else value


__all__ = [
    "average",
    "compared",
    "comparison_notes",
    "differences",
    "has_metrics",
    "mask_threshold",
    "metric_differences",
    "triple",
]
