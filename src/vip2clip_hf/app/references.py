"""Photos of good parts in the web app: read the uploads, and compare photos with them."""

import html
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import as_bank, bank_of
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank


def read_references(
    detector: AnomalyDetectionPipeline, read: Callable[[str, str], Any], paths: Sequence[str], max_images: int
) -> tuple[ReferenceBank | None, list[tuple[str, str]]]:
    """
    Compute the features of uploaded photos of good parts. An upload that cannot be read does not stop the others.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline, with its tiles.
        read (`Callable[[str, str], Any]`): reads an upload by path and name, such as [`PhotoInspector.read`], to
            notice those that cannot be read or are too large.
        paths (`Sequence[str]`): paths of the uploads.
        max_images (`int`): maximum number of photos.

    Returns:
        `tuple[ReferenceBank | None, list[tuple[str, str]]]`: the references, `None` if no photo can be used, and name
        and error of each upload that cannot be used.
    """
    images: list[dict[str, Any]] = []
    problems: list[tuple[str, str]] = []
    for position, path in enumerate(paths):
        name = os.path.basename(path)
        if position >= max_images:
            problems.append((name, f"skipped; the limit is {max_images}. Raise it with --max-images."))
            continue
        try:
            read(path, name)
            with open(path, "rb") as file:
                images.append({"bytes": file.read(), "path": name})
        except (OSError, ValueError) as error:
            problems.append((name, str(error)))
    if not images:
        return None, problems
    options = {**detector.reading_options(), **detector._preprocess_params, **detector._forward_params}
    try:
        bank: Any = as_bank(images, detector.model, detector.image_processor, options)
    except (OSError, ValueError) as error:
        return None, [*problems, ("good photos", str(error))]
    return bank, problems


def describe_references(references: ReferenceBank | None) -> dict[str, Any] | None:
    """
    Describe references for the download.

    Args:
        references ([`ReferenceBank`], *optional*): the references.

    Returns:
        `dict[str, Any]`, *optional*: `num_photos`, `photos` (names) and `checksum`. `None` without references.
    """
    if references is None:
        return None
    names = [photo.name for photo in references.photos]
    return {"num_photos": len(names), "photos": names, "checksum": references.checksum()}


def references_note(
    detector: AnomalyDetectionPipeline,
    references: ReferenceBank | str | None,
    problems: Sequence[tuple[str, str]] = (),
) -> str:
    """
    Describe for the page which references are used. File names and messages are escaped.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline.
        references ([`ReferenceBank`], *optional*): the references, `None`, or `"auto"` for those of the checkpoint.
        problems (`Sequence[tuple[str, str]]`, defaults to `()`): name and error of each unusable upload.

    Returns:
        `str`: HTML.
    """
    bank = bank_of(detector.model, {**detector._forward_params, "references": references})
    if bank is None:
        text = "No good photos: results are zero-shot."
    else:
        photos = "1 good photo" if len(bank) == 1 else f"{len(bank)} good photos"
        text = f"Photos are compared with {photos}{' of the checkpoint' if isinstance(references, str) else ''}."
    found = detector.decision.calibration
    checksum = None if bank is None else bank.checksum()
    if found is not None and (found.get("settings") or {}).get("references") != checksum:
        text += " The thresholds of the checkpoint were chosen for other scores; adjust them."
    if problems:
        lines = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>" for name, reason in problems)
        text += f'<div class="problem">Not used:<ul>{lines}</ul></div>'
    return text


__all__ = ["describe_references", "read_references", "references_note"]
