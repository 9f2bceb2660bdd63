"""The metric that the best checkpoint is chosen by: whether it exists and is defined."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..data.collator import ViP2ClipCollator, count_masks, undecoded
from ..evaluation.metrics import METRICS


if TYPE_CHECKING:
    from datasets import Dataset


def check_selection_metric(
    metric: str, eval_datasets: "Mapping[str, Dataset]", collator: ViP2ClipCollator | None = None
) -> None:
    """
    Check, before training, that a metric can be computed on the evaluation data.

    Args:
        metric (`str`): `metric_for_best_model`, with or without `eval_`.
        eval_datasets (`Mapping[str, datasets.Dataset]`): the evaluation data by name.
        collator ([`ViP2ClipCollator`], *optional*): reads masks, to find one that is not empty. Without it, any mask
            counts.

    Raises:
        ValueError: if there is no such metric, or it is undefined on the data. The message describes what would define
            it.
    """
    name = metric.removeprefix("eval_")
    if name in METRICS:
        plain, chosen = name, dict(eval_datasets)
    else:
        named = {f"{dataset}_{one}": (dataset, one) for dataset in eval_datasets for one in METRICS}
        if len(eval_datasets) < 2 or name not in named:
            names = f", or NAME_METRIC with {', '.join(eval_datasets)}" if len(eval_datasets) > 1 else ""
            raise ValueError(
                f"metric_for_best_model is {name!r}, which is not computed on this evaluation data; expected "
                f"{', '.join(METRICS)}{names}."
            )
        dataset, plain = named[name]
        chosen = {dataset: eval_datasets[dataset]}
    reasons = [_undefined(rows, collator) for rows in chosen.values()]
    level = plain.partition("_")[0]
    if all(level in found for found in reasons):
        reason, remedy = reasons[0][level]
        other = "image" if level == "pixel" else "pixel"
        remedy += ", or omit load_best_model_at_end" if other in reasons[0] else f", or choose a metric of {other}s"
        raise ValueError(
            f"metric_for_best_model is {name!r}, which is undefined on the evaluation data: {reason}. {remedy}."
        )


def _undefined(dataset: "Dataset", collator: ViP2ClipCollator | None) -> dict[str, tuple[str, str]]:
    """Return why the metrics of images and of pixels are undefined on a dataset, and what would define them."""
    found: dict[str, tuple[str, str]] = {}
    labels = defaultdict(set)
    categories = dataset["category"] if "category" in dataset.column_names else [None] * len(dataset)
    for category, label in zip(categories, dataset["label"]):
        labels[category].add(label)
    if not any({0, 1} <= present for present in labels.values()):
        found["image"] = (
            "no category has both normal and anomalous images", "Add the missing images to the evaluation data"
        )  # fmt: skip
    if not count_masks(dataset):
        found["pixel"] = ("no anomalous image has a mask", "Add masks to the evaluation data")
    elif collator is not None and not _has_anomalous_pixels(dataset, collator):
        found["pixel"] = ("all masks are empty", "Correct the masks of the evaluation data, or the mask threshold")
    return found


def _has_anomalous_pixels(dataset: "Dataset", collator: ViP2ClipCollator) -> bool:
    """Check whether there is a mask that is not empty at the size of the model. Usually, this is the first one."""
    rows, collator = undecoded(dataset), replace(collator, pixel_labels=True)
    for position in (number for number, label in enumerate(dataset["label"]) if label == 1):
        row = rows[position]
        if row.get("mask") is not None and collator([row])["mask_labels"].any():
            return True
    return False


def check_selection_value(metric: str, value: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Check the value of the metric after an evaluation.

    Args:
        metric (`str`): `metric_for_best_model`.
        value (`float`): its value.
        results (`Mapping[str, dict]`): result of [`evaluate_model`] for each dataset.

    Raises:
        ValueError: if the value is NaN. No checkpoint could be the best one.
    """
    if value is None or value == value:
        return
    name = metric.removeprefix("eval_")
    undefined = [item for result in results.values() for item in result["mean"]["undefined"].items()]
    reasons = sorted({reason for one, reason in undefined if name.endswith(one)})
    raise ValueError(
        f"metric_for_best_model is {name!r}, which is undefined on the evaluation data"
        f"{': ' + '; '.join(reasons) if reasons else ''}. Change the evaluation data, or choose another metric."
    )


def describe_selection(metric: str, dataset: str, datasets: Mapping[str, Any]) -> list[str]:
    """
    Describe whether the weights were chosen on an evaluation dataset.

    Args:
        metric (`str`): metric that the best checkpoint was chosen by.
        dataset (`str`): name of the dataset.
        datasets (`Mapping[str, Any]`): all evaluation datasets by name.

    Returns:
        `list[str]`: one reason, or an empty list if only other datasets were used.
    """
    name = metric.removeprefix("eval_")
    others = (
        [f"{other}_{one}" for other in datasets if other != dataset for one in METRICS] if len(datasets) > 1 else []
    )
    if name in others:
        return []
    return [f"the epoch was chosen on this dataset, by {name}, so its results are optimistic"]


__all__ = ["check_selection_metric", "check_selection_value", "describe_selection"]
