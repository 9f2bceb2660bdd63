"""Downloads of the web app: results as CSV and ZIP, and the detector of a session."""

import copy
import csv
import io
import os
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoints.saving import write_checkpoint
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.csv_cells import safe_cell
from ..utils.serialization import to_json
from .good_photos import GoodPhotos
from .results import PhotoInspector, PhotoResult


# Columns of the table, those of `vip2clip predict`.
COLUMNS = ("id", "score", "label", "p_value", "anomalous_area", "error")
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


def table_rows(
    inspector: PhotoInspector,
    results: Sequence[PhotoResult],
    problems: Sequence[tuple[str, str]],
    thresholds: tuple[float, float],
) -> list[dict[str, Any]]:
    """
    List the results with the columns of `vip2clip predict`.

    Args:
        inspector ([`PhotoInspector`]): the inspector, with the settings of the session.
        results (`Sequence[PhotoResult]`): results from [`PhotoInspector.analyse`].
        problems (`Sequence[tuple[str, str]]`): names and errors from [`PhotoInspector.analyse`].
        thresholds (`tuple[float, float]`): image and pixel threshold, in [0, 1].

    Returns:
        `list[dict[str, Any]]`: `id` (file name), `score`, `label`, `p_value`, `anomalous_area` (fraction of marked
        pixels in the anomaly map) and `error` of each upload. `None` for what is unknown.

    Raises:
        ValueError: if a threshold is outside [0, 1].
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        found = inspector.decide(result, thresholds)
        area = inspector.marked_area(result, thresholds)
        rows.append({**dict.fromkeys(COLUMNS), "id": result.name, **found, "anomalous_area": area})
    rows += [{**dict.fromkeys(COLUMNS), "id": name, "error": reason} for name, reason in problems]
    return rows


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """
    Write rows as CSV. Names that a spreadsheet would run as a formula are escaped.

    Args:
        rows (`Sequence[dict[str, Any]]`): rows from [`table_rows`].

    Returns:
        `str`: the table, with a header.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: safe_cell(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows
    )
    return stream.getvalue()


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
                archive.writestr(entry[kind], _png(picture))
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
        table = to_csv(table_rows(inspector, results, problems, thresholds))
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


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


__all__ = ["COLUMNS", "describe_references", "safe_stem", "table_rows", "to_csv", "write_detector", "write_zip"]
