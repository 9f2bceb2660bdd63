"""Texts of the web app, as HTML. File names and messages are escaped."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.text import counted
from .good_photos import GoodPhotos
from .results import PhotoResult
from .session import Session


# Maximum number of regions in the table. The download contains all of them.
SHOWN_REGIONS = 100
# Signs in addition to the colors, which not everybody can tell apart.
SIGNS = {"normal": "✓", "anomalous": "▲"}


def kind_of(label: str, normal_label: str) -> str:
    """Return `"normal"` or `"anomalous"`, whatever the labels of the checkpoint are called."""
    return "normal" if label == normal_label else "anomalous"


def introduction(model_name: str, bundled: bool) -> str:
    """
    Create the text above the page.

    Args:
        model_name (`str`): name of the model.
        bundled (`bool`): whether the model is the bundled checkpoint.

    Returns:
        `str`: HTML.
    """
    text = f"<h1>Visual inspection</h1><p>Model: <b>{html.escape(model_name)}</b>"
    if bundled:
        text += (
            ", the small bundled checkpoint. Without good photos to compare with, it is for trying things out. "
            '<span class="wide">A larger one: <code>vip2clip app --model CHECKPOINT</code></span>'
        )
    else:
        text += "."
    return f"{text}</p>"


def example_button(folder: Path) -> str:
    """
    Create the instructions of an empty page, with a button that shows the example photos.

    Args:
        folder (`pathlib.Path`): folder of an example, with photos in `good` and `test`.

    Returns:
        `str`: HTML.
    """
    photos, good = sorted((folder / "test").glob("*.jpg")), len(list((folder / "good").glob("*.jpg")))
    pictures = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}">' for path in photos
    )
    return (
        "<ol><li><b>Good photos:</b> add photos of good parts. They set the threshold. 20 are a good start.</li>"
        "<li><b>Photos to check:</b> add or take photos of other parts in the same way. Results appear here.</li></ol>"
        f'<button type="button"><b>Try an example: {good} photos of good toys, {len(photos)} to check</b>{pictures}'
        "</button>"
    )


def describe_status(session: Session, anomalous: int | None = None, problem: str | None = None) -> str:
    """
    Describe the number of photos and the problems.

    Args:
        session ([`Session`]): results and problems.
        anomalous (`int`, *optional*): number of anomalous photos.
        problem (`str`, *optional*): another problem.

    Returns:
        `str`: HTML.
    """
    count, failed = len(session.results), list(session.problems)
    text = ""
    if count:
        text = f"<p><b>{counted(count, 'photo')} analysed</b>"
        text += "" if anomalous is None or count == 1 else f", {anomalous:,} anomalous"
        text += f". No result for {counted(len(failed), 'file')}, see the table.</p>" if failed else ".</p>"
    elif not failed and problem is None:
        text = "<p>No photos to check yet.</p>"
    if problem is not None:
        text += f'<div class="problem">{html.escape(problem)}</div>'
    if failed and not count:
        text += f'<div class="problem">No result for {counted(len(failed), "file")}:{_listed(failed)}</div>'
    return text


def describe_photo(
    result: PhotoResult,
    found: dict[str, Any],
    normal_label: str,
    image_threshold: float,
    position: tuple[int, int] = (1, 1),
    moved: bool = False,
) -> str:
    """
    Describe the displayed photo: decision, name, score with threshold, p-value, marked pixels and number of regions.

    Args:
        result ([`PhotoResult`]): its result.
        found (`dict[str, Any]`): output of [`PhotoInspector.inspect`].
        normal_label (`str`): label of normal photos.
        image_threshold (`float`): threshold of the score, in [0, 1].
        position (`tuple[int, int]`, defaults to `(1, 1)`): place of the photo in the table, and number of photos.
        moved (`bool`, defaults to `False`): whether the thresholds differ from those that were calibrated.

    Returns:
        `str`: HTML.
    """
    height, width = result.size
    marked, regions = int(found["mask"].sum()), len(found["regions"])
    score, label = found["score"], found["label"]
    kind = kind_of(label, normal_label)
    parts = [f"Score <b>{score:.3f}</b>, threshold {image_threshold:.3f}"]
    if found.get("p_value") is not None:
        parts.append(f"p-value {found['p_value']:.4f}")
    share = 100 * marked / (height * width)
    parts.append(f'<span id="marked">{marked:,}</span> of {height * width:,} pixels marked ({share:.1f}%)')
    parts.append(counted(regions, "region") + (f" (first {SHOWN_REGIONS} listed)" if regions > SHOWN_REGIONS else ""))
    place = f'<span class="place">{position[0]} of {position[1]}</span>' if position[1] > 1 else ""
    note = '<p class="hint">Thresholds were moved: the false-alarm rate does not apply.</p>' if moved else ""
    return (
        f'<div class="verdict {kind}"><div class="headline"><span class="label {kind}"><span aria-hidden="true">'
        f"{SIGNS[kind]}</span> {html.escape(label)}</span> "
        f'<span class="name">{html.escape(result.name)}</span>{place}</div>'
        f'<div class="meter" aria-hidden="true"><span style="width:{100 * score:.1f}%"></span>'
        f'<i style="left:{100 * image_threshold:.1f}%"></i></div><p>{"; ".join(parts)}</p>{note}</div>'
    )


def describe_references(
    detector: AnomalyDetectionPipeline,
    references: ReferenceBank | str | None,
    good: GoodPhotos | None = None,
    problems: Sequence[tuple[str, str]] = (),
    forgotten: bool = False,
) -> str:
    """
    Describe which good photos are used, the thresholds from them, and what these do not guarantee.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline, with the settings of the session.
        references ([`ReferenceBank`], *optional*): the references, `None`, or `"auto"` for those of the checkpoint.
        good ([`GoodPhotos`], *optional*): what the uploaded photos gave.
        problems (`Sequence[tuple[str, str]]`, defaults to `()`): name and error of each unusable upload.
        forgotten (`bool`, defaults to `False`): whether the good photos were removed to free memory.

    Returns:
        `str`: HTML.
    """
    bank = detector.references
    if bank is None:
        text = "<p>No good photos: results are zero-shot.</p>"
    else:
        origin = " of the checkpoint" if isinstance(references, str) else ""
        text = f"<p>Photos are compared with {counted(len(bank), 'good photo')}{origin}.</p>"
    if good is not None:
        text += _thresholds(good)
    if good is None or good.decision is None:
        checksum = None if bank is None else bank.checksum()
        model: Any = detector.model
        expected = model.decision.calibration
        if expected is not None and (expected.get("settings") or {}).get("references") != checksum:
            text += "<p>The thresholds of the checkpoint were chosen for other scores; adjust them.</p>"
    if forgotten:
        text += (
            '<div class="problem">Your good photos were removed, because many people use this page at the same time. '
            "Add them again.</div>"
        )
    if problems:
        text += f'<div class="problem">Not used:{_listed(problems)}</div>'
    return text


def _thresholds(good: GoodPhotos) -> str:
    if good.decision is None:
        return (
            "<p><b>No threshold yet.</b> One photo is too few to choose it, so it is 0.5, without a known false-alarm "
            "rate. Add at least 2 good photos; 20 are a good start.</p>"
        )
    text = f"<p>Threshold <b>{good.decision.image_threshold:.3f}</b>, from {counted(good.count, 'good photo')}"
    if good.rate is not None:
        text += f", for at most <b>{100 * good.rate:.3g} %</b> false alarms"
    text += ".</p>"
    if good.rate_interval is not None:
        low, high = (100 * value for value in good.rate_interval)
        text += (
            f"<p>If the photos are a random sample of good parts, the true rate of false alarms is between {low:.1f} "
            f"and {high:.1f} % (probability of 90 %). "
        )
        text += "More photos make it more certain.</p>" if good.count < 100 else "</p>"
    text += "<p><b>Not guaranteed:</b> how many defects are found. "
    if good.found is not None and good.found[1]:
        hits, total = good.found
        text += f"A rough estimate: {hits} of {total} photos with pasted defects are called anomalous. "
        if hits < 0.7 * total:
            text += "This is low: use more good photos, closer photos, or a larger model. "
    text += "With another camera, light or part, use new good photos.</p>"
    if good.unusual:
        names = ", ".join(html.escape(name) for name in good.unusual[:5])
        more = f" and {len(good.unusual) - 5} more" if len(good.unusual) > 5 else ""
        text += (
            f'<div class="problem">Unlike the other good photos: <b>{names}</b>{more}. If a photo shows a defect or '
            "is a bad photo, remove it: it raises the threshold, so that defects are missed.</div>"
        )
    if good.notes:
        lines = "".join(f"<li>{html.escape(note)}</li>" for note in good.notes)
        text += f"<details><summary>Details</summary><ul>{lines}</ul></details>"
    return text


def _listed(problems: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>" for name, reason in problems)
    return f"<ul>{lines}</ul>"


__all__ = [
    "SHOWN_REGIONS",
    "SIGNS",
    "describe_photo",
    "describe_references",
    "describe_status",
    "introduction",
    "kind_of",
]
