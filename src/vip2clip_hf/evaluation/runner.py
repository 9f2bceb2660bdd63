"""A checkpoint over several data sets: figures, tables, sheets and maps in one folder, which can be gone on with."""

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

import torch
from transformers.utils import logging

from ..data.provenance import find_training_overlap
from ..data.sources import DataSource
from ..models.loading import load_checkpoint, model_checksum, name_of
from ..models.vip2clip.decision_vip2clip import LABELS
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.distributed import from_all, from_first, world
from ..utils.files import file_names, write_atomically
from ..utils.serialization import to_json, without_nan
from ..utils.versions import versions
from .evaluator import evaluate_model
from .map_writer import MapWriter
from .metrics import METRICS
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
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """
    Evaluate a model on data sets and write what was found:

    - `results.json`, everything; `results.csv`, a row a category; `tables.md` and `tables.tex`, in the form of the
      paper's Tables 1 and 2,
    - for each data set a folder with `scores.csv`, a row an image, `sheets/`, and `maps/` when asked.

    A call with the same model, data and settings and the same folder goes on where an earlier one stopped, on any
    number of processes. Where torch.distributed is initialised they share the work and have to see the same folder.

    Args:
        model, image_processor:
            What to evaluate; the model on the device it is to run on.
        sets (`Sequence[DataSource]`):
            On what.
        output (`str` or `os.PathLike`):
            Where to write.
        name (`str`, defaults to `"this model"`):
            What to call the model in the tables.
        batch_size, num_workers, fpr_limit, aupro_convention, progress:
            See [`evaluate_model`].
        sheets (`int`, defaults to 8):
            Images in the sheet of a category; 0 for no sheets.
        sheet_range (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
            Map values at the ends of their colour scale.
        save_maps (`bool`, defaults to `False`):
            Whether to keep the maps, see [`MapWriter`].
        overwrite (`bool`, defaults to `False`):
            Delete what another evaluation has written there.
        save_every (`float`, defaults to 60):
            Seconds of work that a kill can cost.
        on_result (`Callable`, *optional*):
            Is called by the first process with the result of every data set when it is there.

    Returns:
        `list[dict]`: for every set what `evaluate_model` gives, with the fields of the set and `trained_on`: why its
        figures are not those of things never seen (a list of sentences, mostly empty).

    Raises:
        OSError: data that cannot be read, a folder that cannot be written, or that holds another evaluation.
        ValueError: see [`evaluate_model`].
    """
    if not sets:
        raise ValueError("No data set is named; expected at least one.")
    if not 0 <= sheet_range[0] < sheet_range[1] <= 1:
        raise ValueError(f"sheet_range is {sheet_range}; expected two ascending numbers in [0, 1].")
    names = [one.name for one in sets]
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise ValueError(f"Several data sets are called {', '.join(twice)}; expected different names.")
    datasets = [one.load() for one in sets]  # all of them before the first is evaluated
    folders = file_names(names)
    output = Path(output)
    settings = {
        "model": name,
        "model_checksum": model_checksum(model),
        "data": {one.name: _data_checksum(one, dataset) for one, dataset in zip(sets, datasets)},
        "fpr_limit": fpr_limit,
        "aupro_convention": aupro_convention,
        "sheets": sheets,
        "sheet_range": list(sheet_range),
        "save_maps": save_maps,
    }
    error = None
    if world()[0] == 0:
        try:
            _prepare(output, settings, overwrite)
        except OSError as raised:
            error = raised
    if (error := from_first(error)) is not None:
        raise error

    results = []
    for one, dataset in zip(sets, datasets):
        folder = output / folders[one.name]
        file = folder / RESULT_FILE
        result = from_first(json.loads(file.read_text(encoding="utf-8")) if file.exists() else None)
        if result is None:
            trained_on = find_training_overlap(model.config.training_sets, dataset, one.benchmark)
            for reason in trained_on if world()[0] == 0 else ():
                logger.warning(f"{one.name}: the model was {reason}; its figures there are not zero-shot.")
            maps = None
            if save_maps:
                maps = MapWriter(folder / "maps", dataset["category"], dataset["image_id"], model.config.image_size)
            recorder = EvaluationRecorder(len(dataset), folder / ".progress", maps, save_every)
            result = evaluate_model(
                model,
                image_processor,
                dataset,
                batch_size=batch_size,
                mask_threshold=one.mask_threshold,
                fpr_limit=fpr_limit,
                aupro_convention=aupro_convention,
                num_workers=num_workers,
                progress=one.name if progress else False,
                recorder=recorder,
            )
            scores = recorder.scores()
            if sheets:
                options = {"count": sheets, "mask_threshold": one.mask_threshold, "title": one.name}
                options["value_range"] = sheet_range
                write_sheets(model, image_processor, dataset, folder / "sheets", **options)
            from_all(None)  # until the sheets of all processes are there
            result = without_nan({**asdict(one), "trained_on": trained_on, **result})
            if world()[0] == 0:
                write_atomically(folder / "scores.csv", _scores_csv(dataset, scores))
                # Last: it says that the set is done.
                write_atomically(file, to_json(result))
            recorder.finish()
        results.append(with_nan(result))
        if on_result is not None and world()[0] == 0:
            on_result(results[-1])
    if world()[0] == 0:
        written = {"settings": settings, "versions": versions(), "results": without_nan(results)}
        write_atomically(output / "results.json", to_json(written))
        write_atomically(output / "results.csv", csv_report(results))
        write_atomically(output / "tables.md", markdown_report(results, name))
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
    **options,
) -> list[dict[str, Any]]:
    """
    [`evaluate_sets`] for a checkpoint. Under `accelerate launch` or `torchrun` the processes find each other.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder or Hub id.
        sets, output, options:
            See [`evaluate_sets`].
        device, dtype, backbone:
            See [`vip2clip_hf.models.loading.load_checkpoint`].
        name (`str`, *optional*):
            What to call it in the tables; the name of the checkpoint, when not given.

    Raises:
        OSError, ValueError, RuntimeError: see [`evaluate_sets`] and the model's `from_pretrained`.
    """
    model, image_processor = load_checkpoint(checkpoint, device=device, dtype=dtype, backbone=backbone)
    if name is None:
        name = name_of(checkpoint)
    return evaluate_sets(model, image_processor, sets, output, name=name, **options)


def _prepare(output: Path, settings: dict[str, Any], overwrite: bool):
    """A folder with these settings: new, or that of an evaluation to go on with."""
    if output.exists() and not output.is_dir():
        raise OSError(f"{str(output)!r} is a file; expected a folder or a path that does not exist yet.")
    file = output / SETTINGS_FILE
    if output.exists() and any(output.iterdir()):
        if not file.exists():
            raise OSError(f"{str(output)!r} is not empty and holds no evaluation; choose another folder.")
        found = json.loads(file.read_text(encoding="utf-8"))
        if "data" not in found:
            raise OSError(f"{str(output)!r} holds a prediction and no evaluation; choose another folder.")
        different = [key for key, value in settings.items() if found.get(key) != value]
        if not different and not overwrite:
            return
        if not overwrite:
            raise OSError(
                f"{str(output)!r} holds an evaluation with another {', '.join(different)}; choose another folder, or "
                "overwrite it."
            )
        # What an evaluation writes, and nothing else.
        for name in file_names(list(found.get("data", {}))).values():
            shutil.rmtree(output / name, ignore_errors=True)
        for name in ("results.json", "results.csv", "tables.md", "tables.tex"):
            (output / name).unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_json(settings))


def _data_checksum(one: DataSource, dataset: "Dataset") -> str:
    """Of the images, their labels and whether they have masks, in their order."""
    masks = dataset.select_columns("mask").with_format("arrow")[:]["mask"].is_valid().to_pylist()
    columns = [dataset[name] for name in ("image_id", "label", "category")]
    content = json.dumps([one.benchmark, one.split, list(zip(*columns, masks))])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _scores_csv(dataset: "Dataset", scores: Sequence[float]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "category", "label", "defect", "score"])
    columns = [dataset[name] for name in ("image_id", "category", "label", "defect")]
    for image_id, category, label, defect, score in zip(*columns, scores):
        writer.writerow([image_id, category, LABELS[label], defect, f"{score:.6f}"])
    return text.getvalue()


def with_nan(result: dict[str, Any]) -> dict[str, Any]:
    """A result read from JSON, its undefined metrics NaN again."""
    measured = {*METRICS, *THRESHOLDS}

    def restored(found: dict[str, Any]) -> dict[str, Any]:
        return {key: math.nan if value is None and key in measured else value for key, value in found.items()}

    categories = {name: restored(found) for name, found in result["categories"].items()}
    return {**result, "mean": restored(result["mean"]), "categories": categories}


__all__ = ["evaluate_checkpoint", "evaluate_sets"]
