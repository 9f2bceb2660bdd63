"""Files and fields of the result of one dataset."""

import csv
import io
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.provenance import zero_shot_claim
from ..data.sources import DataSource
from ..models.vip2clip.arguments_vip2clip import LABELS
from ..utils.csv_cells import safe_cell
from .category_metrics import AUPROS, METRICS, THRESHOLDS
from .reference_rates import RATES
from .subjects import Subject


if TYPE_CHECKING:
    from datasets import Dataset


UNTRAINED = "zero-shot: the method is not trained on images of anomalies"


def scores_csv(dataset: "Dataset", scores: np.ndarray) -> str:
    """
    Write the scores of images as CSV.

    Args:
        dataset (`datasets.Dataset`): the images.
        scores (`np.ndarray` of shape `(num_images,)`): their scores.

    Returns:
        `str`: one row per image.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "category", "label", "defect", "score"])
    columns = [dataset[name] for name in ("image_id", "category", "label", "defect")]
    for image_id, category, label, defect, score in zip(*columns, scores):
        # All digits, so that metrics and decisions of the file are those of the evaluation.
        writer.writerow([*map(safe_cell, (image_id, category, LABELS[label], defect)), repr(float(score))])
    return text.getvalue()


def about(subject: Subject, source: DataSource, dataset: "Dataset", trained_on: list[str]) -> dict[str, Any]:
    """
    Describe a dataset in a result.

    Args:
        subject ([`Subject`]): the model or detector.
        source ([`DataSource`]): the dataset.
        dataset (`datasets.Dataset`): its images.
        trained_on (`list[str]`): result of [`find_training_overlap`].

    Returns:
        `dict[str, Any]`: the fields of `source`, `trained_on`, `zero_shot`, `licence` and `remarks`.
    """
    sets = subject.provenance.training_sets if getattr(subject.provenance, "training_recorded", True) else []
    remark = dataset.info.description if source.benchmark is not None else ""
    return {
        **asdict(source),
        "trained_on": trained_on,
        "zero_shot": zero_shot_claim(sets, trained_on) if subject.trained else UNTRAINED,
        "licence": dataset.info.license or None,
        "remarks": [remark] if remark else [],
    }


def with_nan(result: dict[str, Any]) -> dict[str, Any]:
    """
    Restore the undefined metrics of a result that was read from JSON.

    Args:
        result (`dict`): result with `None` for undefined metrics.

    Returns:
        `dict`: copy of the result with NaN for undefined metrics.
    """
    measured = {*METRICS, *AUPROS.values(), *THRESHOLDS, *RATES}

    def restored(found: dict[str, Any]) -> dict[str, Any]:
        return {key: math.nan if value is None and key in measured else value for key, value in found.items()}

    categories = {name: restored(found) for name, found in result["categories"].items()}
    return {**result, "mean": restored(result["mean"]), "categories": categories}


__all__ = ["about", "scores_csv", "with_nan"]
