"""Describe a prediction in words: counts, settings, calibration, and how often labels agree."""

import os
from collections.abc import Mapping
from typing import Any

from ..models.vip2clip.arguments_vip2clip import LABELS
from ..utils.text import counted
from .predictions import Predictions


def settings_lines(found: Predictions) -> list[tuple[str, str]]:
    """
    List the settings of a prediction for its reader.

    Args:
        found ([`Predictions`]): the results.

    Returns:
        `list[tuple[str, str]]`: name and value. Settings that are not known are left out.
    """
    settings, source = found.settings, found.settings.get("source") or {}
    versions = settings.get("versions") or {}
    references = settings.get("references")
    lines: list[tuple[str, Any]] = [
        ("Photos", found.photos.root or source.get("data")),
        ("Model", settings.get("model")),
        ("Checksum of the model", settings.get("model_checksum") or settings.get("export_sha256")),
        ("Engine", settings.get("runtime")),
        ("Image threshold", _number(settings.get("image_threshold"))),
        ("Pixel threshold", _number(settings.get("pixel_threshold"))),
        ("Calibration", calibration_text(settings) if settings else None),
        ("References", _references(references) if settings else None),
        ("Tiles", f"{settings['tile_size']} pixels" if settings.get("tile_size") else None),
        ("Written", None if found.written is None else f"{found.written:%Y-%m-%d %H:%M}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]


def _number(value: Any) -> str | None:
    return f"{value:.4f}" if isinstance(value, (int, float)) else None


def _references(references: Any) -> str:
    if not references:
        return "none (zero-shot)"
    count = references.get("num_images") if isinstance(references, Mapping) else None
    return f"{count} photos of good parts" if count else "photos of good parts"


def calibration_text(settings: Mapping[str, Any]) -> str:
    """
    Describe where the thresholds come from.

    Args:
        settings (`Mapping[str, Any]`): settings of the prediction.

    Returns:
        `str`: a sentence.
    """
    found = settings.get("calibrated_with")
    if not found:
        known = "The checkpoint is calibrated." if settings.get("calibration") else "Not calibrated: no p-values."
        return known
    text = f"From {found['num_images']} photos" if found.get("num_images") else "From photos"
    if found.get("method") == "conformal":
        text += " of good parts"
    if found.get("false_alarm_rate") is not None:
        text += f", for a false-alarm rate of {100 * found['false_alarm_rate']:g} %"
    if found.get("recall") is not None:
        text += f", for a detection rate of {100 * found['recall']:g} %"
    if found.get("date"):
        text += f", on {str(found['date'])[:10]}"
    return f"{text}."


def summary_lines(found: Predictions) -> list[str]:
    """
    Describe the results in sentences.

    Args:
        found ([`Predictions`]): the results.

    Returns:
        `list[str]`: the sentences.
    """
    lines = []
    rate = (found.settings.get("calibrated_with") or {}).get("false_alarm_rate")
    readable = len(found.readable)
    if rate is not None and any(row.p_value is not None for row in found.rows):
        expected = rate * readable
        lines.append(
            f"The threshold is chosen for a false-alarm rate of {100 * rate:g} %. If all {counted(readable, 'photo')} "
            f"were of good parts, about {expected:.{0 if expected >= 10 else 1}f} would be reported as anomalous."
        )
    known = [row for row in found.rows if row.truth is not None and row.score is not None]
    if known:
        normal, anomalous = LABELS
        called = found.labels[1]
        bad = [row for row in known if row.truth == anomalous]
        good = [row for row in known if row.truth == normal]
        if bad:
            hits = sum(row.label == called for row in bad)
            lines.append(f"Of {len(bad)} anomalous photos, {hits} are found ({100 * hits / len(bad):.1f} %).")
        if good:
            alarms = sum(row.label == called for row in good)
            lines.append(
                f"Of {len(good)} normal photos, {alarms} are reported as anomalous ({100 * alarms / len(good):.1f} %)."
            )
    return lines


def title_of(found: Predictions) -> str:
    """
    Name a prediction by its photos.

    Args:
        found ([`Predictions`]): the results.

    Returns:
        `str`: name of the folder or dataset.
    """
    source = found.settings.get("source") or {}
    place = found.photos.root or source.get("data") or found.source
    return os.path.basename(str(place).rstrip("/\\")) or "photos"


__all__ = ["calibration_text", "settings_lines", "summary_lines", "title_of"]
