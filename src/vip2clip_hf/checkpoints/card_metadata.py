"""Metadata of a model card: the fields that the Hub shows, filters by and compares."""

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but exported lazily

from ..data.benchmarks.registry import BENCHMARKS
from ..models.vip2clip.provenance_vip2clip import Provenance


TASK = "anomaly-detection"
# Metrics of an evaluation: their id on the Hub and their name.
METRICS = {
    "image_auroc": ("roc_auc", "image AUROC"),
    "image_ap": ("average_precision", "image AP"),
    "image_f1": ("f1", "image F1"),
    "pixel_auroc": ("roc_auc", "pixel AUROC"),
    "pixel_ap": ("average_precision", "pixel AP"),
    "pixel_f1": ("f1", "pixel F1"),
    "pixel_aupro": ("aupro", "AUPRO"),
}
# Ids of licences on the Hub, by the start of a benchmark's licence.
LICENCES = {"CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0", "CC BY 4.0": "cc-by-4.0", "CC0": "cc0-1.0"}


def card_metadata(
    provenance: Provenance, run: Mapping[str, Any], method: str = "vip2clip", name: str = "ViP2-CLIP"
) -> ModelCardData:
    """
    Create the metadata of a model card.

    Args:
        provenance ([`Provenance`]): origin of the checkpoint.
        run (`Mapping[str, Any]`): information about training and evaluation, see [`model_card`].
        method (`str`, defaults to `"vip2clip"`): tag of the method.
        name (`str`, defaults to `"ViP2-CLIP"`): name of the method.

    Returns:
        `huggingface_hub.ModelCardData`: licence, task, library, backbone, training datasets, and the mean of each
        metric over the categories, in [0, 1], for each evaluated dataset. The licence is `run["license"]`, else the
        licence of the training datasets if all have the same, else `"unknown"`. Undefined metrics, and training
        datasets with a name that the Hub does not allow, are left out.
    """
    training_sets = provenance.training_sets
    licences = {_licence(entry.get("benchmark")) for entry in training_sets}
    names = dict.fromkeys(str(entry.get("benchmark") or entry.get("name")) for entry in training_sets)
    results = [result for entry in run.get("results") or [] for result in _results(entry)]
    return ModelCardData(
        license=run.get("license") or (licences.pop() if len(licences) == 1 else "unknown"),
        library_name="transformers",
        pipeline_tag=TASK,
        base_model=provenance.backbone_id,
        datasets=[name for name in names if _is_id(name)] or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=list(dict.fromkeys([TASK, "zero-shot", method, "vip2clip"])),
        model_name=name if results else None,
        eval_results=results or None,
    )


def _results(entry: Mapping[str, Any]) -> list[EvalResult]:
    """Return the defined metrics of an evaluated dataset."""
    seen = bool(entry["trained_on"])
    notes = [
        *(["contains training data"] if seen else []),
        *(["used to choose the epoch"] if entry.get("chosen_on") else []),
    ]
    values = {metric: entry["mean"].get(metric) for metric in METRICS}
    return [
        EvalResult(
            task_type=TASK,
            task_name="Anomaly detection" if seen else "Zero-shot anomaly detection",
            dataset_type=entry["name"],
            dataset_name=f"{entry['name']} ({', '.join(notes)})" if notes else entry["name"],
            metric_type=METRICS[metric][0],
            metric_name=METRICS[metric][1],
            metric_value=round(float(value), 4),
        )
        for metric, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def _licence(benchmark: str | None) -> str:
    """Return the id of a benchmark's licence on the Hub, `"unknown"` if there is none."""
    known = BENCHMARKS.get(benchmark or "")
    text = (known.licence if known else None) or ""
    return next((found for start, found in LICENCES.items() if text.startswith(start)), "unknown")


def _is_id(name: str) -> bool:
    """Check whether a name can be the id of a dataset. The Hub refuses cards with other names."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


__all__ = ["card_metadata"]
