"""Compare methods on the same photos: scores, quality, time, memory, and one picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checkpoints.bundled import BUNDLED
from ..data.sources import DataSource
from ..evaluation.evaluator import wanted_mask_options
from ..evaluation.metrics import AnomalyMetrics
from ..evaluation.reference_sets import EvaluatedSet, ReferencePools
from ..evaluation.subjects import check_categories
from ..models.loading import check_dtype, device_of_process
from ..models.vip2clip.mask_options_vip2clip import DEFAULT_MASK_OPTIONS
from ..utils.device_clock import device_clock
from ..utils.extras import require
from ..utils.figures import save_figure
from ..utils.files import write_atomically
from ..utils.hardware import describe_hardware
from ..utils.outputs import check_output
from ..utils.serialization import to_json
from ..utils.versions import versions
from .competitors import Competitor, choose_methods, load_competitors
from .measurement import Measurement, RunOptions
from .notes import comparison_notes
from .running import run_group
from .shared_tower import group_by_tower
from .sheet import choose_rows, draw_comparison
from .table import describe_method, markdown_page, scores_csv


if TYPE_CHECKING:
    from datasets import Dataset


FILES = ("results.json", "scores.csv", "table.md", "sheet.png")


def compare_methods(
    photos: DataSource | str | os.PathLike,
    methods: str | Sequence[str] = "all",
    *,
    clip: str | os.PathLike = BUNDLED,
    models: Mapping[str, str | os.PathLike] | None = None,
    references: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    class_name: str | Mapping[str, str] | None = None,
    rows: int = 6,
    device: str | None = None,
    dtype: torch.dtype | str = "float32",
    batch_size: int = 4,
    num_workers: int = 0,
    fpr_limit: float = 0.3,
    aupro_convention: str = "exact",
    bit_depth: int | None = None,
    page: int | None = None,
    skip_unreadable: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Run several methods on the same photos.

    Methods with the same vision tower share its run: once for each batch, then each method on its hidden states. The
    results are those of each method on its own.

    Args:
        photos ([`DataSource`], `str` or `os.PathLike`):
            A folder of photos, or a labelled dataset in any form that [`DataSource.parse`] accepts.
        methods (`str` or `Sequence[str]`, defaults to `"all"`):
            Names of methods: `"vip2clip"` and those of `vip2clip_hf.baselines.methods.METHODS`, or `"all"`. Of all, a
            method that cannot run has the reason in its record. A method that is named must run.
        clip (`str` or `os.PathLike`, defaults to `"bundled"`):
            CLIP backbone of the methods without a checkpoint: folder, Hub id or `"bundled"`.
        models (`Mapping[str, str | os.PathLike]`, *optional*):
            Checkpoint by method. ViP²-CLIP has the bundled checkpoint by default. The other methods with training use
            adapters of the package on the bundled backbone, if there are any.
        references (`str` or `os.PathLike`, *optional*):
            Folder of photos of good parts, or with one subfolder for each category, for the methods that use them. By
            default, all methods are zero-shot.
        output (`str` or `os.PathLike`, *optional*):
            Folder for `results.json`, `scores.csv`, `table.md` and `sheet.png`. By default, nothing is written.
        class_name (`str` or `Mapping[str, str]`, *optional*):
            Name of the class in the prompts of methods that use one: one for all categories, or by category. By
            default, the category of a labelled dataset, and `"object"` for photos without labels.
        rows (`int`, defaults to 6):
            Number of photos in the sheet.
        device (`str`, *optional*):
            Device. By default, an accelerator if available, otherwise the CPU.
        dtype (`torch.dtype` or `str`, defaults to `"float32"`):
            Dtype of the backbones.
        batch_size (`int`, defaults to 4):
            Photos per batch.
        num_workers (`int`, defaults to 0):
            Number of processes that decode photos.
        fpr_limit (`float`, defaults to 0.3), aupro_convention (`str`, defaults to `"exact"`):
            See [`AnomalyMetrics`].
        bit_depth, page (`int`, *optional*):
            How to read photos and references, see [`load_image`]. They default to those of the image processor of
            each method.
        skip_unreadable (`bool`, defaults to `False`):
            Whether to leave out photos that cannot be read.
        overwrite (`bool`, defaults to `False`):
            Whether to replace an earlier comparison in `output`.
        progress (`bool`, defaults to `False`):
            Whether to show progress bars.

    Returns:
        `dict`: JSON types. `methods` contains one record for each method: the metrics `image_auroc`, `pixel_auroc` and
        `pixel_aupro` (`None` if undefined), times in milliseconds per photo, `peak_memory` in bytes, and the `reason`
        if it did not run. `scores` are lists by method, in the order of `images`. The other fields are `photos`,
        `num_images`, `labelled`, `references` (names by category, empty for zero-shot), `notes`, `hardware`,
        `settings`, `versions` and, if photos were left out, `unreadable`.

    Raises:
        ImportError: if a package of the extra `train` is not installed.
        OSError: if photos or weights cannot be read, or `output` contains a comparison.
        RuntimeError: if weights are missing.
        ValueError: if an argument is invalid or has no effect, only some photos have labels, a named method has no
            weights, no method can run, or a score or map is not finite.
    """
    dtype = check_dtype(dtype)
    require("train", "A comparison", "accelerate", "datasets", "scipy", "tabulate", "matplotlib")
    choose_methods(methods)
    AnomalyMetrics(fpr_limit, aupro_convention)
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1.")
    source = photos if isinstance(photos, DataSource) else DataSource.parse(os.fspath(photos))
    if references is not None and not os.path.isdir(references):
        raise OSError(f"The folder of references {os.fspath(references)!r} is not found; expected a folder of photos.")
    inputs = [source.root, *([references] if references is not None else [])]
    if output is not None:
        _check_folder(output, inputs, overwrite)
    dataset = source.load(need_labels=False)
    labelled = _is_labelled(dataset)
    names = _class_names(class_name, dataset, labelled)
    used: Any = device_of_process(device)
    competitors = load_competitors(methods, clip=clip, models=models, device=used, dtype=dtype, class_name=names)
    _check_used(competitors, class_name, references)
    for one in competitors:
        if one.subject is not None:  # photos and references are read in the same way
            processor = one.subject.image_processor
            processor.bit_depth = processor.bit_depth if bit_depth is None else bit_depth
            processor.page = processor.page if page is None else page
    reading = next(one.subject for one in competitors if one.subject is not None).reading()
    mask_options = wanted_mask_options(source.mask_options, aupro_convention).over(DEFAULT_MASK_OPTIONS)
    good = _references(source, dataset, references, reading)
    encoded: dict[str, Any] = {}
    if good is not None:
        usable = [one for one in competitors if one.uses_references]
        encoded = {one.key: one.subject.encode(good) for one in usable if one.subject is not None}
    positions = choose_rows(dataset, rows)
    clock = device_clock(used)
    options = RunOptions(batch_size, num_workers, mask_options, fpr_limit, aupro_convention, skip_unreadable, progress)
    measured: dict[str, Measurement] = {}
    unreadable: dict[str, str] = {}
    for group in group_by_tower(competitors):
        found, failed = run_group(group, dataset, encoded, positions, clock, options)
        measured |= {each.competitor.key: each for each in found}
        unreadable |= failed
    ordered = [measured[one.key] for one in competitors if one.key in measured]
    records = [
        describe_method(one, measured.get(one.key), None if one.key not in encoded or good is None else good.count)
        for one in competitors
    ]
    result = {
        "photos": source.name,
        "num_images": len(dataset),
        "labelled": labelled,
        "references": {} if good is None else good.fields()["reference_photos"],
        "methods": records,
        "images": list(dataset["image_id"]),
        "scores": {one.competitor.key: [None if np.isnan(v) else float(v) for v in one.scores] for one in ordered},
        "notes": comparison_notes(records, clock.memory_kind, _without_meaning(competitors, clip)),
        "hardware": describe_hardware(used),
        "settings": {
            "clip": os.fspath(clip),
            "models": {name: os.fspath(path) for name, path in (models or {}).items()},
            "class_name": class_name if class_name is None or isinstance(class_name, str) else dict(class_name),
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "fpr_limit": fpr_limit,
            "aupro_convention": aupro_convention,
            "mask_options": asdict(mask_options),
        },
        "versions": versions(),
        **({"unreadable": unreadable} if unreadable else {}),
    }
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = [place for place in positions if dataset["image_id"][place] not in unreadable]
        (folder / "sheet.png").unlink(missing_ok=True)  # of an earlier comparison
        if drawn:
            save_figure(draw_comparison(dataset, drawn, ordered, mask_options, reading), folder / "sheet.png")
        write_atomically(folder / "scores.csv", scores_csv(dataset, ordered))
        write_atomically(folder / "table.md", markdown_page(result))
        write_atomically(folder / "results.json", to_json(result))
    return result


def _check_folder(output: str | os.PathLike, inputs: Sequence[str | os.PathLike], overwrite: bool) -> None:
    check_output("output", output, inputs)
    there = [name for name in FILES if Path(output, name).exists()]
    if there and not overwrite:
        raise OSError(
            f"{os.fspath(output)!r} contains {there[0]} of an earlier comparison; choose another folder, or overwrite "
            "it (--overwrite)."
        )


def _check_used(
    competitors: Sequence[Competitor],
    class_name: str | Mapping[str, str] | None,
    references: str | os.PathLike | None,
) -> None:
    """Refuse what no method uses."""
    ran = [one for one in competitors if one.subject is not None]
    for what, option, value, used in (
        ("class names", "class_name (--class-name)", class_name, [one.uses_class_names for one in ran]),
        ("references", "references (--references)", references, [one.uses_references for one in ran]),
    ):
        if value is not None and not any(used):
            names = ", ".join(one.name for one in ran)
            raise ValueError(f"{option} is set, but none of the methods uses {what} ({names}); remove it.")


def _class_names(
    class_name: str | Mapping[str, str] | None, dataset: "Dataset", labelled: bool
) -> str | Mapping[str, str] | None:
    """Names for the prompts. Without labels, the name of a folder says nothing about the class."""
    if isinstance(class_name, Mapping):
        check_categories(class_name, dataset["category"])
        return class_name if labelled else {**dict.fromkeys(dataset["category"], "object"), **class_name}
    return "object" if class_name is None and not labelled else class_name


def _is_labelled(dataset: "Dataset") -> bool:
    """Whether all photos have a label. Only some of them is an error."""
    labels = list(dataset["label"])
    unlabelled = sum(label is None for label in labels)
    if not labels:
        raise ValueError("There are no photos; expected at least one.")
    if 0 < unlabelled < len(labels):
        raise ValueError(f"{unlabelled} of {len(labels)} photos have no label; expected labels for all or none.")
    return not unlabelled


def _references(
    source: DataSource, dataset: "Dataset", folder: str | os.PathLike | None, reading: dict[str, Any]
) -> EvaluatedSet | None:
    """Photos of good parts for each category, without those that are compared."""
    if folder is None:
        return None
    pools = ReferencePools(source, dataset, os.fspath(folder), reading)
    photos = {category: pools.draw(category, None, 0) for category in pools.categories}
    pools.warn()
    return EvaluatedSet(source, dataset, source.name, None, photos, min(map(len, photos.values())))


def _without_meaning(competitors: Sequence[Competitor], clip: str | os.PathLike) -> list[str]:
    """Methods that compare images with the untrained text tower of the bundled backbone."""
    if clip != BUNDLED:
        return []
    bundled = ("bundled backbone", "bundled adapters")
    return [one.name for one in competitors if one.compares_texts and one.weights in bundled]


__all__ = ["FILES", "compare_methods"]
