"""Settings of two predictions: how they differ, and what readers want to know. Without torch."""

import json
from typing import Any

from ..models.vip2clip.decision_config_vip2clip import DecisionConfig


# Settings that are compared by the contents of the images, or may differ.
FREE_SETTINGS = ("num_images", "ids_sha256", "model", "versions", "decoding", "calibrated_with")
# Parts of the calibration that a reader of the results wants to know.
CALIBRATED_WITH = ("method", "false_alarm_rate", "recall", "num_images", "num_anomalous", "leave_one_out", "date")
# How an error message refers to a setting; by default, "KEY setting".
_TITLES = {
    "model_checksum": "model", "image_processor": "image processor", "dtype": "dtype", "source": "source",
    "references": "bank of references", "export_sha256": "exported model", "runtime": "engine",
}  # fmt: skip


def calibrated_with(decision: DecisionConfig) -> dict[str, Any] | None:
    """
    Describe the calibration of a checkpoint, for readers of the results.

    Args:
        decision ([`DecisionConfig`]): settings of the decisions.

    Returns:
        `dict[str, Any]`, *optional*: method, rate, number of images and date. `None` without a calibration.
    """
    found = decision.calibration
    return None if found is None else {name: found[name] for name in CALIBRATED_WITH if name in found}


def explain_differences(found: dict[str, Any], settings: dict[str, Any]) -> str:
    """
    Compare the settings of two predictions.

    Args:
        found (`dict[str, Any]`): settings of an earlier prediction.
        settings (`dict[str, Any]`): settings now.

    Returns:
        `str`: phrase with all differences, with the values if they are short. Empty if there are none.
    """
    texts = []
    for key in [*settings, *(key for key in found if key not in settings)]:
        if key in FREE_SETTINGS or found.get(key) == settings.get(key):
            continue
        old, new = json.dumps(found.get(key)), json.dumps(settings.get(key))
        values = f" (was {old}, now {new})" if len(old + new) < 400 else ""
        texts.append(f"a different {_TITLES.get(key, f'{key} setting')}{values}")
    return " and ".join(texts)


__all__ = ["CALIBRATED_WITH", "FREE_SETTINGS", "calibrated_with", "explain_differences"]
