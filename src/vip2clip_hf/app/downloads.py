"""Downloads of the web app: results as CSV, report and ZIP, and the detector of a session."""

import copy
import os
import re
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoints.saving import write_checkpoint
from ..models.vip2clip.arguments_vip2clip import label_names
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..reporting.csv_files import csv_text
from ..reporting.page import build_report
from ..reporting.pictures import Picture, picture_side
from ..reporting.predictions import Prediction, Predictions
from ..utils.pictures import data_uri, png_bytes
from ..utils.serialization import to_json
from ..utils.text import counted
from .good_photos import GoodPhotos
from .results import PhotoInspector, PhotoResult


# Of a larger model, in bytes, the download contains thresholds and references only.
MAX_CHECKPOINT = 100 * 1024**2
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_README = """# Detector of a session of the web app

Files for the checkpoint {model}, chosen from {count} photos of good parts:

- decision.json: the thresholds.
{references}
Copy them into a copy of the checkpoint folder, then use this folder:

    vip2clip predict photos --model FOLDER
"""


def predictions(
    inspector: PhotoInspector,
    model_name: str,
    results: Sequence[PhotoResult],
    problems: Sequence[tuple[str, str]],
    thresholds: tuple[float, float],
) -> Predictions:
    """
    Collect the results for tables and the report.

    Args:
        inspector ([`PhotoInspector`]): the inspector, with the settings of the session.
        model_name (`str`): name of the model.
        results (`Sequence[PhotoResult]`): results from [`PhotoInspector.analyse`].
        problems (`Sequence[tuple[str, str]]`): names and errors from [`PhotoInspector.analyse`].
        thresholds (`tuple[float, float]`): image and pixel threshold, in [0, 1].

    Returns:
        [`Predictions`]: one row per upload, and the settings. `anomalous_area` is the fraction of marked pixels in the
        anomaly map.

    Raises:
        ValueError: if a threshold is outside [0, 1].
    """
    rows = []
    for result in results:
        found = inspector.decide(result, thresholds)
        area = inspector.marked_area(result, thresholds)
        rows.append(Prediction(result.name, found["score"], found["label"], found.get("p_value"), area))
    rows += [Prediction(name, error=reason) for name, reason in problems]
    model: Any = inspector.detector.model
    bank = inspector.detector.references
    calibration = inspector.detector.decision.calibration if thresholds == inspector.thresholds else None
    settings = {
        "model": model_name,
        "labels": list(label_names(model.config.id2label)),
        "image_threshold": thresholds[0],
        "pixel_threshold": thresholds[1],
        "calibrated_with": calibration,
        "references": None if bank is None else {"num_images": len(bank)},
    }
    return Predictions(rows, settings, written=datetime.now())


def write_html(
    target: Path,
    inspector: PhotoInspector,
    model_name: str,
    results: Sequence[PhotoResult],
    problems: Sequence[tuple[str, str]],
    thresholds: tuple[float, float],
) -> None:
    """
    Write the report: one page with all results and small pictures.

    Args:
        target (`Path`): file to write.
        inspector, model_name, results, problems, thresholds: see [`predictions`].

    Raises:
        OSError: if an upload has expired, or the file cannot be written.
        ValueError: if a threshold is outside [0, 1].
    """
    found = predictions(inspector, model_name, results, problems, thresholds)
    side, pictures = picture_side(len(results)), {}
    for position, result in enumerate(results):
        photo = inspector.read(result.path, result.name)
        heatmap = inspector.heatmap(result, photo)
        for image in (photo, heatmap):
            image.thumbnail((side, side))
        pictures[position] = Picture(data_uri(photo), data_uri(heatmap), photo.size)
    title = f"Inspection of {counted(len(results), 'photo')}"
    target.write_text(build_report(found, pictures, title=title), encoding="utf-8")


def write_zip(
    target: Path,
    inspector: PhotoInspector,
    model_name: str,
    results: Sequence[PhotoResult],
    problems: Sequence[tuple[str, str]],
    thresholds: tuple[float, float],
    good: GoodPhotos | None = None,
) -> None:
    """
    Write the results to a ZIP file: `results.json`, `results.csv`, and heatmap and mask of every photo as PNG.

    Args:
        target (`Path`): file to write.
        inspector ([`PhotoInspector`]): the inspector, with the settings of the session.
        model_name (`str`): name of the model, stored in `results.json`.
        results (`Sequence[PhotoResult]`): results from [`PhotoInspector.analyse`].
        problems (`Sequence[tuple[str, str]]`): names and errors from [`PhotoInspector.analyse`].
        thresholds (`tuple[float, float]`): image and pixel threshold, in [0, 1].
        good ([`GoodPhotos`], *optional*): what the good photos of the session gave.

    Raises:
        OSError: if an upload has expired, or the file cannot be written.
        ValueError: if a threshold is outside [0, 1].
    """
    entries: list[dict[str, Any]] = []
    with zipfile.ZipFile(target, "w") as archive:
        for number, result in enumerate(results, start=1):
            found = inspector.inspect(result, thresholds, inspector.read(result.path, result.name))
            entry: dict[str, Any] = {"image": result.name, "score": found["score"], "label": found["label"]}
            if "p_value" in found:
                entry["p_value"] = found["p_value"]
            entry.update(anomalous_pixels=int(found["mask"].sum()), regions=found["regions"])
            pictures = {"heatmap": found["heatmap"], "mask": Image.fromarray(found["mask"])}
            for kind, picture in pictures.items():
                entry[kind] = f"{kind}s/{number:03d}_{safe_stem(result.name)}.png"
                archive.writestr(entry[kind], png_bytes(picture))
            entries.append(entry)
        entries += [{"image": name, "error": reason} for name, reason in problems]
        content: dict[str, Any] = {
            "model": model_name,
            "image_threshold": thresholds[0],
            "pixel_threshold": thresholds[1],
            "references": describe_references(results[0].references if results else None),
            "good_photos": None if good is None else good.to_dict(),
        }
        archive.writestr("results.json", to_json({**content, "results": entries}), zipfile.ZIP_DEFLATED)
        table = csv_text(predictions(inspector, model_name, results, problems, thresholds).rows)
        archive.writestr("results.csv", table, zipfile.ZIP_DEFLATED)


def write_detector(target: Path, inspector: PhotoInspector, model_name: str, good: GoodPhotos) -> None:
    """
    Write the detector of a session to a ZIP file: a checkpoint folder with its references and thresholds or, for a
    model of more than 100 MB, only `decision.json` and the references, to copy into a checkpoint folder.

    Args:
        target (`Path`): file to write.
        inspector ([`PhotoInspector`]): the inspector, with the settings of the session.
        model_name (`str`): name of the model.
        good ([`GoodPhotos`]): what the good photos of the session gave.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the good photos gave no thresholds.
    """
    if good.decision is None:
        raise ValueError("There are no thresholds to save; add at least 2 good photos.")
    detector = inspector.detector
    bank = detector.references
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        root = Path(folder) / "detector"
        if sum(weight.nbytes for weight in detector.model.parameters()) <= MAX_CHECKPOINT:
            model: Any = copy.copy(detector.model)
            image_processor = copy.copy(detector.image_processor)
            model.references, model.decision, image_processor.decision = bank, good.decision, good.decision
            root.mkdir()
            write_checkpoint(model, image_processor, root)
        else:
            good.decision.save_pretrained(root)
            listed = ""
            if isinstance(bank, ReferenceBank):
                bank.save_pretrained(root)
                listed = "- references.json and references.safetensors: the photos to compare with, as features.\n"
            text = _README.format(model=model_name, count=good.count, references=listed)
            (root / "README.md").write_text(text, encoding="utf-8")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root.parent).as_posix())


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


def safe_stem(name: str) -> str:
    """
    Make the stem of a file name safe for use in another file name.

    Args:
        name (`str`): file name from an upload.

    Returns:
        `str`: the name without extension, with ASCII letters, digits, "_" and "-" only, at most 60 characters;
        "photo" if nothing is left.
    """
    return _UNSAFE.sub("_", os.path.splitext(name)[0]).strip("_")[:60] or "photo"


__all__ = ["describe_references", "predictions", "safe_stem", "write_detector", "write_html", "write_zip"]
