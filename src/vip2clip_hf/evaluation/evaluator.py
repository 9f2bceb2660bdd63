"""Evaluate any detector on a dataset, on one or several processes. No model class is imported."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.mask_checks import warn_about_masks
from ..data.targets import DetectorCollator, ReadableRows, count_masks, shared_mask_options, undecoded
from ..models.vip2clip.mask_options_vip2clip import DEFAULT_MASK_OPTIONS, MaskOptions
from ..utils.distributed import from_all, world
from ..utils.unreadable import check_unreadable
from .category_metrics import AUPROS, PIXEL_METRICS
from .detector import Detector, check_detectors, check_output
from .recorder import EvaluationRecorder
from .regions import EvaluationMetrics


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)
NO_MAPS = "the detector returns no anomaly maps"


def evaluate_detector(
    detector: Detector | Mapping[str, Detector],
    dataset: "Dataset",
    *,
    batch_size: int = 8,
    mask_options: MaskOptions | None = None,
    fpr_limit: float = 0.3,
    aupro_convention: str = "exact",
    num_workers: int = 0,
    progress: bool | str = False,
    recorder: EvaluationRecorder | None = None,
    skip_unreadable: bool = False,
    bit_depth: int | None = None,
    page: int | None = None,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """
    Compute image and pixel metrics of a detector per category, and their mean.

    Anomaly maps are compared with masks at the image size of the detector. If torch.distributed is initialized, every
    process evaluates its share of the images, each image once, and all processes return the result of all images.

    Args:
        detector ([`Detector`] or `Mapping[str, Detector]`):
            The method, or one detector per category, for methods that are fitted to a category. All images of a batch
            have the same detector.
        dataset (`datasets.Dataset`):
            Dataset returned by [`load_folder`] or [`load_benchmark`], with a label for every image.
        batch_size (`int`, defaults to 8):
            Number of images per batch.
        mask_options ([`MaskOptions`], *optional*):
            How to read masks. Options in the rows of the dataset, such as those of a benchmark, have precedence. By
            default, mask values greater than 0 are anomalous. With `aupro_convention="release"`, small regions are
            not kept unless you set it, as in the authors' code.
        fpr_limit (`float`, defaults to 0.3):
            False positive rate up to which AUPRO is integrated, in (0, 1].
        aupro_convention (`"exact"` or `"release"`, defaults to `"exact"`):
            See [`AnomalyMetrics`].
        num_workers (`int`, defaults to 0):
            Number of processes that decode images and call `prepare`.
        progress (`bool` or `str`, defaults to `False`):
            Whether to show a progress bar, or its title.
        recorder ([`EvaluationRecorder`], *optional*):
            Keeps scores and anomaly maps, and saves the progress to resume after an interruption.
        skip_unreadable (`bool`, defaults to `False`):
            Whether to leave out images whose file or mask cannot be read, with a warning. By default, they are an
            error at the end that lists all of them.
        bit_depth, page (`int`, *optional*):
            How to read images, see [`load_image`].
        left_out (`Mapping[str, str]`, *optional*):
            Images that are not evaluated: the reason by image id.

    Returns:
        `dict`: the result of [`AnomalyMetrics.compute`], with the categories in the order of the dataset, and
        `mask_options` as used. Categories also contain `num_original_regions` (regions of the masks at the size of the
        images), `num_small_regions` (those without a pixel at the size of the detector), `num_lost_regions` (those of
        them that are not kept, see [`MaskOptions`]) and `num_empty_masks`. `settings` contains `fpr_limit`,
        `aupro_convention`, `detector` (names), `image_size` and `mask_threshold`. If images could not be read,
        `unreadable` contains the reason by image id. Without anomaly maps, pixel metrics are NaN.

    Raises:
        ImportError: if datasets or scipy is not installed.
        OSError: if images or masks cannot be read. The message lists them.
        ValueError: if the detector has no method that is needed or returns something else than scores and maps of the
            expected shapes with finite values, there are no images, an image has no label, or a mask is invalid or
            differs in size from its image. The message contains the ids of the images.
    """
    check_labels(dataset)
    categories = dataset["category"]
    detectors = check_detectors(detector, categories)
    rank, world_size = world()
    recorder = EvaluationRecorder(len(dataset)) if recorder is None else recorder
    options = wanted_mask_options(mask_options, aupro_convention)
    options = shared_mask_options(dataset).over(options).over(DEFAULT_MASK_OPTIONS)
    if rank == 0:
        warn_about_masks(dataset, options)
    metrics = EvaluationMetrics(fpr_limit, aupro_convention)
    left = recorder.remaining()
    if left_out:
        ids = dataset["image_id"]
        left = [position for position in left if ids[position] not in left_out]
    # Strided and not padded, so that every image is evaluated exactly once on any number of processes.
    batches = one_detector_batches(left[rank::world_size], categories, detectors, batch_size)
    image_size, with_masks = next(iter(detectors.values())).image_size, count_masks(dataset) > 0
    reading = {name: value for name, value in (("bit_depth", bit_depth), ("page", page)) if value is not None}
    loader = detector_loader(
        dataset, batches, detectors, image_size if with_masks else None, options, reading, num_workers
    )
    unreadable: dict[str, str] = {}
    with_maps: dict[int, bool] = {}
    title = progress if isinstance(progress, str) else "evaluating"
    try:
        for rows, (batch, kept, failed) in zip(batches, tqdm(loader, desc=title, disable=not progress or rank > 0)):
            unreadable.update(failed)
            if not kept or (failed and not skip_unreadable):
                continue  # a later run evaluates the whole batch, once its images can be read
            one = detectors[batch["categories"][0]]
            scores, maps = _score(one, batch, recorder.maps is not None, with_maps)
            add_batch(metrics, batch, scores, maps)
            recorder.add([rows[number] for number in kept], scores, maps)
            recorder.save(metrics)
    finally:
        # Also after an error or an interrupt, to resume from here.
        recorder.save(metrics, now=True)
    unreadable = {name: reason for failed in from_all(unreadable) for name, reason in failed.items()}
    check_unreadable(unreadable, len(dataset), skip_unreadable)
    result = _merged(metrics, recorder).compute()
    order = {name: position for position, name in enumerate(detectors)}
    if unreadable:
        result["unreadable"] = unreadable
    result["categories"] = dict(sorted(result["categories"].items(), key=lambda item: order[item[0]]))
    _say_no_maps(result, dataset if with_masks else None)
    result["mask_options"] = asdict(options)
    small, lost = (
        sum(found[name] for found in result["categories"].values())
        for name in ("num_small_regions", "num_lost_regions")
    )
    if small > 0 and rank == 0:
        logger.warning_once(
            f"{small} regions of the masks have no pixel at the size of the model, {image_size} x {image_size}. "
            f"{small - lost} are kept there with at least one pixel, {lost} are lost and count as normal, as in the "
            "authors' code (see keep_small_regions)."
        )
    result["settings"] = {
        "fpr_limit": metrics.fpr_limit,
        "aupro_convention": aupro_convention,
        "detector": ", ".join(dict.fromkeys(one.name for one in detectors.values())),
        "image_size": image_size,
        "mask_threshold": options.threshold,
    }
    return result


def detector_loader(
    dataset: "Dataset",
    batches: Sequence[list[int]],
    detectors: Mapping[str, Detector],
    mask_size: int | None,
    mask_options: MaskOptions,
    reading: Mapping[str, Any],
    num_workers: int = 0,
) -> Any:
    """
    Read the batches of an evaluation.

    Args:
        dataset (`datasets.Dataset`): the images.
        batches (`Sequence[list[int]]`): result of `one_detector_batches`.
        detectors (`Mapping[str, Detector]`): detector by category.
        mask_size (`int`, *optional*): side of the masks. By default, masks are not read.
        mask_options ([`MaskOptions`]): how to read masks.
        reading (`Mapping[str, Any]`): how to read images, see [`load_image`].
        num_workers (`int`, defaults to 0): number of processes that decode images.

    Returns:
        `torch.utils.data.DataLoader`: loader of results of [`ReadableRows`].
    """
    prepare = {category: one.prepare for category, one in detectors.items()}
    collator = DetectorCollator(prepare, mask_size, mask_options, reading)
    rows: Any = undecoded(dataset)
    return torch.utils.data.DataLoader(
        rows, batch_sampler=batches, collate_fn=ReadableRows(collator, reading), num_workers=num_workers
    )


def check_labels(dataset: "Dataset") -> None:
    """
    Check that a dataset can be evaluated.

    Args:
        dataset (`datasets.Dataset`): the dataset.

    Raises:
        ValueError: if there are no images, or an image has no label.
    """
    if not len(dataset):
        raise ValueError("The dataset contains no images; expected at least one.")
    unlabelled = sum(label is None for label in dataset["label"])
    if unlabelled:
        raise ValueError(f"{unlabelled} of {len(dataset)} images have no label; expected a label for every image.")


def wanted_mask_options(mask_options: MaskOptions | None, aupro_convention: str) -> MaskOptions:
    """
    Add the option that belongs to a convention of AUPRO.

    Args:
        mask_options ([`MaskOptions`], *optional*): how to read masks.
        aupro_convention (`str`): `"exact"` or `"release"`, which does not keep small regions.

    Returns:
        [`MaskOptions`]: the options.
    """
    options = MaskOptions() if mask_options is None else mask_options
    return options.over(MaskOptions(keep_small_regions=False)) if aupro_convention == "release" else options


def one_detector_batches(
    positions: Sequence[int], categories: Sequence[str], detectors: Mapping[str, Detector], batch_size: int
) -> list[list[int]]:
    """
    Divide images into batches, each with one detector.

    Args:
        positions (`Sequence[int]`): positions of the images to evaluate.
        categories (`Sequence[str]`): category of every image of the dataset.
        detectors (`Mapping[str, Detector]`): detector by category.
        batch_size (`int`): largest number of images per batch.

    Returns:
        `list[list[int]]`: positions of each batch.
    """
    groups: dict[int, list[int]] = {}
    for position in positions:
        groups.setdefault(id(detectors[categories[position]]), []).append(position)
    return [
        group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
    ]


def _score(
    detector: Detector, batch: Mapping[str, Any], need_maps: bool, with_maps: dict[int, bool]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Score a batch, and check that it has maps if the batches before it have maps."""
    with torch.no_grad():
        output = detector.score(batch["inputs"])
    with _named_images(batch):
        scores, maps = check_output(detector, output, len(batch["image_ids"]))
        has_maps = maps is not None
        if with_maps.setdefault(id(detector), has_maps) != has_maps:
            raise ValueError(f"The detector {detector.name!r} returns maps for some batches; expected all or none.")
        if need_maps and not has_maps:
            raise ValueError(f"The detector {detector.name!r} returns no anomaly maps; expected maps to save.")
    return scores, maps


def add_batch(
    metrics: EvaluationMetrics, batch: Mapping[str, Any], scores: torch.Tensor, maps: torch.Tensor | None
) -> None:
    """
    Add a batch to the metrics.

    Args:
        metrics ([`EvaluationMetrics`]): the metrics.
        batch (`Mapping[str, Any]`): result of [`DetectorCollator`], with labels.
        scores (`torch.Tensor` of shape `(batch_size,)`): scores.
        maps (`torch.Tensor` of shape `(batch_size, image_size, image_size)`, *optional*): anomaly maps.

    Raises:
        ValueError: if a value is not finite. The message contains the ids of the images.
    """
    pixels = {}
    if "mask_labels" in batch and maps is not None:
        pixels = {"anomaly_maps": maps, "masks": batch["mask_labels"], "has_mask": batch["mask_valid"]}
    with _named_images(batch):
        metrics.update(scores, batch["labels"], categories=batch["categories"], **pixels)
    if "regions" in batch:
        metrics.add_regions(batch["categories"], batch["labels"].tolist(), batch["regions"])


@contextmanager
def _named_images(batch: Mapping[str, Any]) -> Iterator[None]:
    """Add the ids of the images of a batch to an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} The images of the batch are {batch['image_ids']}.") from error


def _merged(metrics: EvaluationMetrics, recorder: EvaluationRecorder) -> EvaluationMetrics:
    """Metrics of all processes and of earlier runs."""
    states = [*recorder.earlier, metrics.state_dict()]
    merged = EvaluationMetrics(metrics.fpr_limit, metrics.aupro_convention)
    for process_states in from_all(states):
        for state in process_states:
            part = EvaluationMetrics(metrics.fpr_limit, metrics.aupro_convention)
            part.load_state_dict(state)
            merged.merge(part)
    return merged


def _say_no_maps(result: dict[str, Any], dataset: "Dataset | None") -> None:
    """Correct the reason of undefined pixel metrics where images with masks were evaluated without maps."""
    if dataset is None:
        return
    columns = dataset.select_columns(["mask", "label", "category"]).with_format("arrow")[:]
    rows = zip(columns["category"], columns["mask"], columns["label"])
    usable = {category.as_py() for category, mask, label in rows if mask.is_valid or label.as_py() == 0}
    without = [name for name, found in result["categories"].items() if name in usable and not found["num_maps"]]
    for name in without:
        undefined = result["categories"][name]["undefined"]
        undefined.update(dict.fromkeys((*PIXEL_METRICS, *AUPROS.values()), NO_MAPS))
    for metric in (*PIXEL_METRICS, *AUPROS.values()) if without else ():
        reasons = {name: found["undefined"].get(metric) for name, found in result["categories"].items()}
        names = [name for name, reason in reasons.items() if reason is not None]
        given = sorted({reason for reason in reasons.values() if reason is not None})
        result["mean"]["undefined"][metric] = f"{'; '.join(given)} ({', '.join(names)})"


__all__ = [
    "add_batch",
    "check_labels",
    "detector_loader",
    "evaluate_detector",
    "one_detector_batches",
    "wanted_mask_options",
]
