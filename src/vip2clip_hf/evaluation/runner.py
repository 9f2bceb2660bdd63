"""Evaluate a checkpoint on several datasets. Results, tables, sheets and maps go into one folder; runs can resume."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from ..data.provenance import find_training_overlap
from ..data.sources import DataSource
from ..models.loading import load_checkpoint
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.contents import decoding
from ..utils.distributed import from_all, on_first, world
from ..utils.extras import require
from ..utils.files import name_of, write_atomically
from ..utils.serialization import to_json, without_nan
from ..utils.versions import merge_versions
from .detector import Detector
from .map_writer import MapWriter
from .metrics import AnomalyMetrics
from .output import SCORES_FILE, SETTINGS_FILE, EvaluationFolder
from .recorder import EvaluationRecorder
from .reference_sets import EvaluatedSet, ReferenceChoice, evaluated_sets
from .reports import csv_report, latex_report, markdown_report, not_compared
from .set_key import SetKey
from .set_results import about, scores_csv, with_nan
from .sheets import write_sheets
from .subjects import check_categories, map_maximum_of, subject_of


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)


def evaluate_sets(
    model: ViP2ClipForAnomalyDetection | Detector,
    image_processor: ViP2ClipImageProcessor | None,
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
    references: ReferenceChoice | str | None = "auto",
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
        model ([`ViP2ClipForAnomalyDetection`] or [`Detector`]):
            Model, on the device to run on, or a detector of another method, such as [`BaselineDetector`]. Its
            attribute `settings` (a dict) identifies the detector.
        image_processor ([`ViP2ClipImageProcessor`], *optional*):
            Image processor of the model. `None` for a detector.
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
            Anomaly map values at the ends of the colour scale, ascending and in [0, 1]. For a detector whose maps have
            a larger `map_maximum`, as fractions of it.
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
        references ([`ReferenceChoice`], *optional*, defaults to `"auto"`):
            Photos of good parts to compare with. Each number of references is evaluated with each seed, in a folder
            such as `DATASET-4-references-seed-0`, in addition to zero-shot. `"auto"` uses the references of the model,
            if it has any, and `None` uses none.
        on_result (`Callable`, *optional*):
            Function called by the first process with the result of each dataset as soon as it is available.

    Returns:
        `list[dict]`: for each evaluation, the result of [`evaluate_model`] with the fields of its `DataSource` and
        `trained_on`, a list of reasons why the result is not zero-shot (usually empty). With references, also
        `dataset` (name of the dataset), `reference_seed` and `reference_photos` (names of the references).

    Raises:
        ImportError: if a package of the extra `train` is not installed.
        OSError: if an image cannot be read, or the folder cannot be written or contains something else.
        ValueError: if there are no datasets, two have the same name, `sheet_range` is invalid, an image has no label,
            a detector has class names of categories without images, scores or maps are not finite, or there are
            fewer photos than references.
    """
    _check_packages(sheets)
    subject = subject_of(model, image_processor)
    if not sets:
        raise ValueError("There are no datasets to evaluate; expected at least one.")
    if not 0 <= sheet_range[0] < sheet_range[1] <= 1:
        raise ValueError(f"sheet_range is {sheet_range}; expected two ascending numbers in [0, 1].")
    AnomalyMetrics(fpr_limit, aupro_convention)  # checks both before a folder is created or changed
    if isinstance(references, str) and references != "auto":
        raise ValueError(f"references is {references!r}; expected a ReferenceChoice, 'auto' or None.")
    choice = references if isinstance(references, ReferenceChoice) else ReferenceChoice(own=references is not None)
    names = [source.name for source in sets]
    duplicates = sorted({one for one in names if names.count(one) > 1})
    if duplicates:
        raise ValueError(
            f"Several datasets have the same name: {', '.join(duplicates)}; expected different names. On the command "
            "line, use NAME=ROOT."
        )
    evaluations = evaluated_sets(sets, choice, subject, subject.image_processor)
    if isinstance(names_of := getattr(model, "class_name", None), Mapping):
        check_categories(names_of, [name for one in evaluations for name in one.dataset["category"]])
    output, rank = Path(output), world()[0]
    drawn = {"count": sheets, "range": list(sheet_range)} if sheets else {"count": 0}
    provenance = subject.provenance
    settings = {
        **subject.settings(),
        "fpr_limit": fpr_limit,
        "aupro_convention": aupro_convention,
    }
    folder, keys = EvaluationFolder(output, [one.name for one in evaluations]), {}

    def prepare() -> dict[str, tuple[str, dict[str, Any] | None]]:
        for one in evaluations:
            source = one.source
            own = {"benchmark": source.benchmark, "split": source.split, "masks": asdict(source.mask_options)}
            more = {
                "training": [provenance.training_sets, getattr(provenance, "training_recorded", True)],
                "name": source.name,
            }
            keys[one.name] = SetKey({**settings, **own, **one.settings()}, one.dataset, more)
        roots = [*(source.root for source in sets), *([choice.folder] if choice.folder is not None else [])]
        return folder.prepare(keys, roots, overwrite, drawn, save_maps, skip_unreadable)

    def commit(
        one: EvaluatedSet,
        dataset: "Dataset",
        action: str,
        result: dict[str, Any],
        scores: np.ndarray | None,
        readable: Sequence[int],
    ) -> dict[str, Any]:
        name = one.name
        if action == "move":
            folder.wait(name)
        elif action != "reuse":
            kept: dict[str, int] = {}
            if scores is not None:
                new = folder.staging(name) / "new"
                new.mkdir(parents=True, exist_ok=True)
                write_atomically(new / SCORES_FILE, scores_csv(dataset, scores[readable]))
                result["run"] = {"versions": folder.versions(name), "decoding": decoding()}
            else:
                files = result["run"]["files"].items()
                kept = {file: size for file, size in files if not file.startswith("sheets/")}
            result["run"] |= {"key": keys[name].to_dict(), "sheets": drawn}
            folder.commit(name, result, keys[name], kept)
        return {**result, "root": one.source.root}  # the data can have been moved

    try:
        plans = on_first(prepare)
        results = []
        for one in evaluations:
            source, dataset = one.source, one.dataset
            action, result = plans[one.name]
            new = folder.staging(one.name) / "new"
            recorder = None
            # Of other evaluations, the features are not needed.
            banks = subject.encode(one) if action in ("evaluate", "draw") else None
            if action == "evaluate":
                # Opens all images, so the other processes do not repeat it.
                trained_on = on_first(find_training_overlap, provenance.training_sets, dataset, source.benchmark)
                for reason in trained_on if rank == 0 else ():
                    logger.warning(f"{one.name}: the results are not zero-shot, because the model was {reason}.")
                maps = None
                if save_maps:
                    maps = MapWriter(new / "maps", dataset["category"], dataset["image_id"], subject.image_size)
                recorder = EvaluationRecorder(len(dataset), folder.staging(one.name), maps, save_every)
                result = subject.evaluate(
                    dataset,
                    banks,
                    batch_size=batch_size,
                    mask_options=source.mask_options,
                    fpr_limit=fpr_limit,
                    aupro_convention=aupro_convention,
                    num_workers=num_workers,
                    progress=one.name if progress else False,
                    recorder=recorder,
                    skip_unreadable=skip_unreadable,
                )
                described = {**about(subject, source, dataset, trained_on), "name": one.name, **one.fields()}
                result = without_nan({**described, **result})
            left_out = {**((result or {}).get("unreadable") or {}), **((result or {}).get("excluded") or {})}
            readable = [number for number, image in enumerate(dataset["image_id"]) if image not in left_out]
            if left_out:
                dataset = dataset.select(readable)
            if action in ("evaluate", "draw") and sheets:
                reading, detectors = subject.reading(), subject.detectors(dataset["category"], banks)
                largest = map_maximum_of(detectors)
                write_sheets(
                    detectors,
                    dataset,
                    new / "sheets",
                    count=sheets,
                    mask_options=subject.mask_options(source.mask_options),
                    title=one.name,
                    value_range=(sheet_range[0] * largest, sheet_range[1] * largest),
                    bit_depth=reading.get("bit_depth"),
                    page=reading.get("page"),
                )
            scores = None
            if recorder is not None:
                scores = recorder.scores()
                if recorder.maps is not None:
                    recorder.maps.close()
            from_all(None)  # wait until all processes have written their sheets
            results.append(with_nan(on_first(commit, one, dataset, action, result, scores, readable)))
            if on_result is not None and rank == 0:
                on_result(results[-1])

        def finish() -> None:
            written = {"model": name, **settings, "sheets": sheets, "sheet_range": list(sheet_range)}
            written |= {"save_maps": save_maps, "data": {found: key.digest for found, key in keys.items()}}
            compared = [{**result, "not_compared": not_compared(result)} for result in results]
            found = {
                "settings": written,
                "versions": merge_versions([one["run"]["versions"] for one in results]),
                "results": without_nan(compared),
            }
            files = {
                SETTINGS_FILE: to_json(written),
                "results.json": to_json(found),
                "results.csv": csv_report(results),
                "tables.md": markdown_report(results, name),
                "tables.tex": latex_report(results, name),
            }
            folder.finish(files, overwrite)

        on_first(finish)
        return results
    finally:
        folder.run.release()


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


__all__ = ["evaluate_checkpoint", "evaluate_sets"]
