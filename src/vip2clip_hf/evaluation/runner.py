"""Evaluate a checkpoint on several datasets. Results, tables, sheets and maps go into one folder; runs can resume."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from ..data.provenance import find_training_overlap
from ..data.sources import DataSource
from ..models.loading import load_checkpoint, model_checksum, name_of
from ..models.vip2clip.arguments_vip2clip import LABELS
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.distributed import from_all, from_first, world
from ..utils.extras import require
from ..utils.files import file_names, write_atomically
from ..utils.serialization import to_json, without_nan
from ..utils.versions import versions
from .evaluator import evaluate_model
from .map_writer import MapWriter
from .metrics import METRICS, AnomalyMetrics
from .recorder import EvaluationRecorder
from .sheets import write_sheets
from .tables import THRESHOLDS, csv_report, latex_report, markdown_report


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"


def evaluate_sets(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    sets: Sequence[DataSource],
    output: str | os.PathLike,
    *,
    name: str = "this model",
    batch_size: int = 8,
    num_workers: int = 0,
    fpr_limit: float = 0.3,
    aupro_convention: str = "exact",
    sheets: int = 8,
    sheet_range: tuple[float, float] = (0.0, 1.0),
    save_maps: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    save_every: float = 60.0,
    skip_unreadable: bool = False,
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """
    Evaluate a model on several datasets and write the results to a folder.

    The folder contains:

    - `results.json` with all results, `results.csv` with one row per category, and `tables.md` and `tables.tex` in the
      form of the paper's Tables 1 and 2,
    - one folder per dataset with `scores.csv`, one row per image, the example images in `sheets/`, and `maps/` if
      `save_maps` is set.

    To resume an interrupted evaluation, call the function again with the same model, datasets, settings and folder.
    The number of processes may differ. If torch.distributed is initialized, the processes share the work. All of them
    must have access to the folder.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            Model, on the device to run on.
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor of the model.
        sets (`Sequence[DataSource]`):
            Datasets, with different names. Every image needs a label.
        output (`str` or `os.PathLike`):
            Folder to write to. It must be new or empty, or contain the evaluation to resume.
        name (`str`, defaults to `"this model"`):
            Name of the model in the tables.
        batch_size (`int`, defaults to 8):
            Number of images per batch.
        num_workers (`int`, defaults to 0):
            Number of processes that decode images, for each process that evaluates.
        fpr_limit (`float`, defaults to 0.3):
            False positive rate up to which AUPRO is integrated, in (0, 1].
        aupro_convention (`"exact"` or `"release"`, defaults to `"exact"`):
            See [`AnomalyMetrics`].
        sheets (`int`, defaults to 8):
            Number of images in the sheet of each category, or 0 for no sheets.
        sheet_range (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            Anomaly map values at the ends of the colour scale, ascending and in [0, 1].
        save_maps (`bool`, defaults to `False`):
            Whether to save all anomaly maps, see [`MapWriter`].
        overwrite (`bool`, defaults to `False`):
            Whether to delete an existing evaluation in the folder and start again.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar for each dataset.
        save_every (`float`, defaults to 60):
            Seconds between saves of the progress.
        skip_unreadable (`bool`, defaults to `False`):
            Whether to leave out images whose file or mask cannot be read, see [`evaluate_model`].
        on_result (`Callable`, *optional*):
            Function called by the first process with the result of each dataset as soon as it is available.

    Returns:
        `list[dict]`: for each dataset, the result of [`evaluate_model`] with the fields of its `DataSource` and
        `trained_on`, a list of reasons why the result is not zero-shot (usually empty).

    Raises:
        ImportError: if a package of the extra `train` is not installed.
        OSError: if an image cannot be read, or the folder cannot be written or contains something else.
        ValueError: if there are no datasets, two have the same name, `sheet_range` is invalid, an image has no label,
            or scores or maps are not finite.
    """
    _check_packages(sheets)
    if not hasattr(model, "config") or not hasattr(model, "provenance"):
        raise ValueError(f"model is a {type(model).__name__}; expected a ViP2ClipForAnomalyDetection.")
    if not sets:
        raise ValueError("There are no datasets to evaluate; expected at least one.")
    if not 0 <= sheet_range[0] < sheet_range[1] <= 1:
        raise ValueError(f"sheet_range is {sheet_range}; expected two ascending numbers in [0, 1].")
    AnomalyMetrics(fpr_limit, aupro_convention)  # checks both before a folder is created or changed
    names = [source.name for source in sets]
    duplicates = sorted({one for one in names if names.count(one) > 1})
    if duplicates:
        raise ValueError(
            f"Several datasets have the same name: {', '.join(duplicates)}; expected different names. On the command "
            "line, use NAME=ROOT."
        )
    datasets = [source.load() for source in sets]  # to find errors in any of them before the first is evaluated
    folders = file_names(names)
    output = Path(output)
    settings = {
        "model": name,
        "model_checksum": model_checksum(model),
        "data": {source.name: _data_checksum(source, dataset) for source, dataset in zip(sets, datasets)},
        "fpr_limit": fpr_limit,
        "aupro_convention": aupro_convention,
        "sheets": sheets,
        "sheet_range": list(sheet_range),
        "save_maps": save_maps,
    }
    error: OSError | None = None
    if world()[0] == 0:
        try:
            _prepare(output, settings, overwrite, [source.root for source in sets])
        except OSError as raised:
            error = raised
    if (error := from_first(error)) is not None:
        raise error

    results = []
    for source, dataset in zip(sets, datasets):
        folder = output / folders[source.name]
        file = folder / RESULT_FILE
        result = from_first(json.loads(file.read_text(encoding="utf-8")) if file.exists() else None)
        if result is None:
            trained_on = find_training_overlap(model.provenance.training_sets, dataset, source.benchmark)
            for reason in trained_on if world()[0] == 0 else ():
                logger.warning(f"{source.name}: the results are not zero-shot, because the model was {reason}.")
            maps = None
            if save_maps:
                maps = MapWriter(folder / "maps", dataset["category"], dataset["image_id"], model.config.image_size)
            recorder = EvaluationRecorder(len(dataset), folder / ".progress", maps, save_every)
            result = evaluate_model(
                model,
                image_processor,
                dataset,
                batch_size=batch_size,
                mask_threshold=source.mask_threshold,
                fpr_limit=fpr_limit,
                aupro_convention=aupro_convention,
                num_workers=num_workers,
                progress=source.name if progress else False,
                recorder=recorder,
                skip_unreadable=skip_unreadable,
            )
            scores = recorder.scores()
            if result.get("unreadable"):
                kept = [number for number, one in enumerate(dataset["image_id"]) if one not in result["unreadable"]]
                dataset, scores = dataset.select(kept), scores[kept]
            if sheets:
                write_sheets(
                    model,
                    image_processor,
                    dataset,
                    folder / "sheets",
                    count=sheets,
                    mask_threshold=source.mask_threshold,
                    title=source.name,
                    value_range=sheet_range,
                )
            from_all(None)  # wait until all processes have written their sheets
            result = without_nan({**asdict(source), "trained_on": trained_on, **result})
            if world()[0] == 0:
                write_atomically(folder / "scores.csv", _scores_csv(dataset, scores))
                # Written last, because it marks the dataset as finished.
                write_atomically(file, to_json(result))
            recorder.finish()
        results.append(with_nan(result))
        if on_result is not None and world()[0] == 0:
            on_result(results[-1])
    if world()[0] == 0:
        written = {"settings": settings, "versions": versions(), "results": without_nan(results)}
        write_atomically(output / "results.json", to_json(written))
        write_atomically(output / "results.csv", csv_report(results))
        write_atomically(output / "tables.md", markdown_report(results, name, [_describe_aupro(settings)]))
        write_atomically(output / "tables.tex", latex_report(results, name))
    return results


def evaluate_checkpoint(
    checkpoint: str | os.PathLike,
    sets: Sequence[DataSource],
    output: str | os.PathLike,
    *,
    device: str | None = None,
    dtype: torch.dtype | str = "float32",
    backbone: str | os.PathLike | None = None,
    name: str | None = None,
    bit_depth: int | None = None,
    page: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Load a checkpoint and evaluate it on several datasets, see [`evaluate_sets`].

    Under `accelerate launch` or `torchrun`, this also sets up communication between the processes.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder or Hub id.
        sets (`Sequence[DataSource]`):
            Datasets, with different names. Every image needs a label.
        output (`str` or `os.PathLike`):
            Folder to write to. It must be new or empty, or contain the evaluation to resume.
        device (`str`, *optional*):
            Device of the model. By default, an accelerator if available, otherwise the CPU.
        dtype (`torch.dtype` or `str`, defaults to `"float32"`):
            Dtype of the model.
        backbone (`str` or `os.PathLike`, *optional*):
            Folder or Hub id of the CLIP backbone, for an adapters-only checkpoint.
        name (`str`, *optional*):
            Name of the model in the tables. Defaults to the name of the checkpoint.
        bit_depth, page (*optional*):
            How to read images, see [`load_image`]. They default to those of the image processor.
        options:
            Further arguments of [`evaluate_sets`].

    Returns:
        `list[dict]`: see [`evaluate_sets`].

    Raises:
        ImportError: if a package of the extra `train` is not installed.
        OSError: if checkpoint, backbone or images cannot be read, or the folder cannot be written or contains
            something else.
        RuntimeError: if weights are missing.
        ValueError: if an argument is invalid, an image has no label, the backbone is not the one used in training, or
            scores or maps are not finite.
    """
    _check_packages(options.get("sheets", 8))  # before the checkpoint is loaded
    model, image_processor = load_checkpoint(checkpoint, device=device, dtype=dtype, backbone=backbone)
    image_processor.bit_depth = image_processor.bit_depth if bit_depth is None else bit_depth
    image_processor.page = image_processor.page if page is None else page
    if name is None:
        name = name_of(checkpoint)
    return evaluate_sets(model, image_processor, sets, output, name=name, **options)


def _check_packages(sheets: int) -> None:
    """Check the packages that write the results, before hours of work."""
    require("train", "An evaluation with tables", "accelerate", "datasets", "scipy", "tabulate")
    if sheets:
        require("train", "An evaluation with sheets", "matplotlib")


def _prepare(output: Path, settings: dict[str, Any], overwrite: bool, roots: Sequence[Any]) -> None:
    """Create the output folder, or check that it contains an evaluation with the same settings."""
    for root in roots:
        # A Hub id is not a path that exists.
        if os.path.exists(root) and Path(root).resolve().is_relative_to(output.resolve()):
            raise OSError(f"The dataset {str(root)!r} is in the output folder {str(output)!r}; choose another folder.")
    if output.exists() and not output.is_dir():
        raise OSError(f"{str(output)!r} is a file; expected a folder or a path that does not exist.")
    file = output / SETTINGS_FILE
    if output.exists() and any(output.iterdir()):
        if not file.exists():
            raise OSError(
                f"{str(output)!r} is not empty and does not contain an evaluation; expected a new folder, or the "
                "folder of an evaluation."
            )
        found = json.loads(file.read_text(encoding="utf-8"))
        if "data" not in found:
            raise OSError(f"{str(output)!r} contains a prediction, not an evaluation; choose another folder.")
        different = [key for key, value in settings.items() if found.get(key) != value]
        if not different and not overwrite:
            return
        if not overwrite:
            changes = [
                key if "checksum" in key or key == "data" else f"{key} (was {found.get(key)}, now {settings[key]})"
                for key in different
            ]
            raise OSError(
                f"{str(output)!r} contains an evaluation with different settings: {', '.join(changes)}; choose "
                "another folder, or overwrite the evaluation (--overwrite)."
            )
        kept = [file for name in file_names(list(found.get("data", {}))).values() for file in _delete(output / name)]
        if kept:
            logger.warning(
                f"{len(kept)} files in {str(output)!r} were not written by an evaluation and are kept: {kept[0]}"
                f"{', ...' if len(kept) > 1 else ''}"
            )
        for name in ("results.json", "results.csv", "tables.md", "tables.tex"):
            (output / name).unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_json(settings))


def _delete(folder: Path) -> list[str]:
    """Delete the files that an evaluation of a dataset writes, and return the paths of other files, which are kept."""
    shutil.rmtree(folder / ".progress", ignore_errors=True)
    for file in (folder / RESULT_FILE, folder / "scores.csv"):
        file.unlink(missing_ok=True)
    for name, extensions in (("sheets", (".png",)), ("maps", (".npy", ".json"))):
        for file in (folder / name).glob("*"):
            if file.suffix in extensions and file.is_file():
                file.unlink()
    for path in (folder / "sheets", folder / "maps", folder):
        with contextlib.suppress(OSError):  # absent, or contains other files
            path.rmdir()
    return sorted(str(file) for file in folder.rglob("*") if not file.is_dir())


def _data_checksum(source: DataSource, dataset: "Dataset") -> str:
    """Checksum of benchmark, split and, for every image, its id, label and category and whether it has a mask."""
    masks = dataset.select_columns("mask").with_format("arrow")[:]["mask"].is_valid().to_pylist()
    columns = [dataset[name] for name in ("image_id", "label", "category")]
    content = json.dumps([source.benchmark, source.split, list(zip(*columns, masks))])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _scores_csv(dataset: "Dataset", scores: np.ndarray) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "category", "label", "defect", "score"])
    columns = [dataset[name] for name in ("image_id", "category", "label", "defect")]
    for image_id, category, label, defect, score in zip(*columns, scores):
        writer.writerow([image_id, category, LABELS[label], defect, f"{score:.6f}"])
    return text.getvalue()


def _describe_aupro(settings: dict[str, Any]) -> str:
    release = settings["aupro_convention"] == "release"
    thresholds = (
        "with the 200 thresholds of the authors' released code" if release else "with every value as a threshold"
    )
    return f"AUPRO is integrated up to a false positive rate of {settings['fpr_limit']:g}, {thresholds}."


def with_nan(result: dict[str, Any]) -> dict[str, Any]:
    """
    Restore the undefined metrics of a result that was read from JSON.

    Args:
        result (`dict`): result with `None` for undefined metrics.

    Returns:
        `dict`: copy of the result with NaN for undefined metrics.
    """
    measured = {*METRICS, *THRESHOLDS}

    def restored(found: dict[str, Any]) -> dict[str, Any]:
        return {key: math.nan if value is None and key in measured else value for key, value in found.items()}

    categories = {name: restored(found) for name, found in result["categories"].items()}
    return {**result, "mean": restored(result["mean"]), "categories": categories}


__all__ = ["evaluate_checkpoint", "evaluate_sets"]
