"""A plan that runs in seconds: the bundled backbone, 64 pixels, two steps, and a few generated images."""

from pathlib import Path
from typing import Any

from vip2clip_hf.reproduction.plan import Plan, make_plan


TINY_PLAN: dict[str, Any] = {
    "backbone": "bundled",
    "recipe": "tiny",
    "training": {
        "max_steps": 2, "save_strategy": "no", "average_weights_from": None, "per_device_train_batch_size": 4,
        "learning_rate": 0.05, "perception_learning_rate": 0.05,  # so that scores differ by more than rounding
    },
    "model": {"image_size": 64, "top_k": 5, "smoothing_sigma": 1.0},
    "seeds": [1],
    "datasets": {"one": "generated: stripes", "two": "generated: dots"},
    "generated": {"num_normal": 2, "num_anomalous": 1, "size": 64},
    "efficiency": {"images": 2, "batch_sizes": [1], "repeats": 2, "variants": ["float32"]},
    "top_k": [1, 5],
    "state_words": [["good", "damaged"], ["normal", "abnormal"]],
    "evaluation": {"feature_memory": 1},
    "pictures": 1,
}  # fmt: skip


def tiny_content(**changes: Any) -> dict[str, Any]:
    """Content of the tiny plan. Dictionaries among the changes update those of the plan, and `None` removes a key."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY_PLAN.items()}
    for key, value in changes.items():
        updated = key in ("training", "model", "generated", "efficiency", "evaluation") and isinstance(value, dict)
        content[key] = {**content[key], **value} if updated else value
    return {key: value for key, value in content.items() if value is not None}


def tiny_plan(**changes: Any) -> Plan:
    """The tiny plan, with changes as in `tiny_content`."""
    return make_plan(tiny_content(**changes), "tiny")


def generated(output: Path, name: str) -> Path:
    """Folder of a generated dataset in the output of a reproduction."""
    (found,) = (path for path in (output / "data").glob(f"{name}-*") if path.is_dir())
    return found
