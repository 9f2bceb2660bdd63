"""Evaluate a model on a dataset, on one or several processes."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.collator import ReadableRows, ViP2ClipCollator, resolve_mask_options, shared_mask_options, undecoded
from ..data.mask_checks import warn_about_masks
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.distributed import from_all, on_first, world
from ..utils.unreadable import check_unreadable
from .recorder import EvaluationRecorder
from .reference_rates import add_rates, among_references, banks_of, one_bank_batches
from .regions import EvaluationMetrics


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)


def evaluate_model(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    dataset: "Dataset",
    *,
    batch_size: int = 8,
    mask_threshold: int | float | None = None,
    fpr_limit: float = 0.3,
    aupro_convention: str = "exact",
    num_workers: int = 0,
    progress: bool | str = False,
    recorder: EvaluationRecorder | None = None,
    mask_options: MaskOptions | None = None,
    skip_unreadable: bool = False,
    references: Mapping[str, ReferenceBank] | ReferenceBank | str | None = "auto",
) -> dict[str, Any]:
    """
    Compute image and pixel metrics of a model per category, and their mean.

    Anomaly maps are compared with masks at the image size of the model. If torch.distributed is initialized, every
    process evaluates its share of the images, each image once, and all processes return the result of all images.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            Model, on the device to run on.
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor of the model.
        dataset (`datasets.Dataset`):
            Dataset returned by [`load_folder`] or [`load_benchmark`], with a label for every image.
        batch_size (`int`, defaults to 8):
            Number of images per batch.
        mask_threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous. Defaults to the value of the image processor (0). For a
            benchmark, use `BENCHMARKS[name].mask_threshold`.
        fpr_limit (`float`, defaults to 0.3):
            False positive rate up to which AUPRO is integrated, in (0, 1].
        aupro_convention (`"exact"` or `"release"`, defaults to `"exact"`):
            See [`AnomalyMetrics`].
        num_workers (`int`, defaults to 0):
            Number of processes that decode images.
        progress (`bool` or `str`, defaults to `False`):
            Whether to show a progress bar, or its title.
        recorder ([`EvaluationRecorder`], *optional*):
            Keeps scores and anomaly maps, and saves the progress to resume after an interruption.
        mask_options ([`MaskOptions`], *optional*):
            How to read masks. Options that are not set are those of the image processor. With
            `aupro_convention="release"`, small regions are not kept unless you set it, as in the authors' code.
        skip_unreadable (`bool`, defaults to `False`):
            Whether to leave out images whose file or mask cannot be read, with a warning. By default, they are an
            error at the end that lists all of them.
        references (`Mapping[str, ReferenceBank]` or [`ReferenceBank`], *optional*, defaults to `"auto"`):
            Photos of good parts to compare with: one bank for each category, or one for all. `"auto"` uses
            `model.references`, `None` uses none. An image with the same pixels as a reference is not evaluated.

    Returns:
        `dict`: the result of [`AnomalyMetrics.compute`], with the categories in the order of the dataset, and
        `mask_options` as used. Categories also contain `num_original_regions` (regions of the masks at the size of the
        images), `num_small_regions` (those without a pixel at the size of the model), `num_lost_regions` (those of
        them that are not kept, see [`MaskOptions`]) and `num_empty_masks`. `settings` contains `fpr_limit`,
        `aupro_convention`, `dtype`, `image_size` and `mask_threshold`. If images were left out, `unreadable` contains
        the reason by image id.

        With references, the result contains `references` (number per category, the smallest if it differs) and, if
        there are any, `excluded` (name of the reference by id of the image that is one). Categories and mean contain
        `detection_rate` and `false_alarm_rate` at the threshold for 5 % false alarms from the left-out references,
        `reference_threshold`; they are NaN with fewer than 19 references.

    Raises:
        ImportError: if datasets or scipy is not installed.
        OSError: if images or masks cannot be read. The message lists them.
        ValueError: if there are no images, an image has no label, a mask is invalid or differs in size from its
            image, scores or maps are not finite, or the references belong to another model or lack a category. The
            message contains the ids of the images.
    """
    if not len(dataset):
        raise ValueError("The dataset contains no images; expected at least one.")
    unlabelled = sum(label is None for label in dataset["label"])
    if unlabelled:
        raise ValueError(f"{unlabelled} of {len(dataset)} images have no label; expected a label for every image.")
    rank, world_size = world()
    recorder = EvaluationRecorder(len(dataset)) if recorder is None else recorder
    wanted = MaskOptions(threshold=mask_threshold).over(mask_options or MaskOptions())
    if aupro_convention == "release":
        wanted = wanted.over(MaskOptions(keep_small_regions=False))
    options = resolve_mask_options(image_processor, mask_options=shared_mask_options(dataset).over(wanted))
    collator = ViP2ClipCollator.for_dataset(image_processor, dataset, mask_options=options, return_metadata=True)
    if rank == 0:
        warn_about_masks(dataset, options)
    metrics = EvaluationMetrics(fpr_limit, aupro_convention)
    # Strided and not padded, so that every image is evaluated exactly once on any number of processes.
    categories = dataset["category"]
    banks = banks_of(references, model, categories)
    excluded = on_first(among_references, undecoded(dataset), banks, image_processor) if banks else {}
    _check_excluded(excluded, len(dataset))
    left = recorder.remaining()
    if excluded:
        ids = dataset["image_id"]
        left = [position for position in left if ids[position] not in excluded]
    share = left[rank::world_size]
    batches = one_bank_batches(share, categories, banks, batch_size)
    loader = torch.utils.data.DataLoader(
        undecoded(dataset), batch_sampler=batches, collate_fn=ReadableRows(collator), num_workers=num_workers
    )
    unreadable: dict[str, str] = {}
    title = progress if isinstance(progress, str) else "evaluating"
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for rows, (batch, kept, failed) in zip(
                batches, tqdm(loader, desc=title, disable=not progress or rank > 0)
            ):
                unreadable.update(failed)
                if not kept or (failed and not skip_unreadable):
                    continue  # a later run evaluates the whole batch, once its images can be read
                positions = [rows[number] for number in kept]
                outputs = model(pixel_values=batch["pixel_values"].to(model.device), **_chosen(model, banks, batch))
                maps = {}
                if "mask_labels" in batch:
                    maps = {
                        "anomaly_maps": outputs.anomaly_maps,
                        "masks": batch["mask_labels"],
                        "has_mask": batch["mask_valid"],
                    }
                try:
                    metrics.update(outputs.scores, batch["labels"], categories=batch["categories"], **maps)
                except ValueError as error:
                    raise ValueError(f"{error} The images of the batch are {batch['image_ids']}.") from error
                if "regions" in batch:
                    metrics.add_regions(batch["categories"], batch["labels"].tolist(), batch["regions"])
                recorder.add(positions, outputs.scores, outputs.anomaly_maps)
                recorder.save(metrics)
    finally:
        # Also after an error or an interrupt, to resume from here.
        recorder.save(metrics, now=True)
        model.train(was_training)
    unreadable = {name: reason for failed in from_all(unreadable) for name, reason in failed.items()}
    check_unreadable(unreadable, len(dataset), skip_unreadable)
    states = [*recorder.earlier, metrics.state_dict()]
    metrics = EvaluationMetrics(fpr_limit, aupro_convention)
    for process_states in from_all(states):
        for state in process_states:
            part = EvaluationMetrics(fpr_limit, aupro_convention)
            part.load_state_dict(state)
            metrics.merge(part)
    result = metrics.compute()
    order = {name: position for position, name in enumerate(dict.fromkeys(dataset["category"]))}
    if unreadable:
        result["unreadable"] = unreadable
    result["categories"] = dict(sorted(result["categories"].items(), key=lambda item: order[item[0]]))
    result["mask_options"] = asdict(options)
    if banks:
        add_rates(result, banks, recorder.scores(), dataset["label"], categories)
        result["references"] = min(map(len, banks.values()))
        result |= {"excluded": excluded} if excluded else {}
    small, lost = (
        sum(found[name] for found in result["categories"].values())
        for name in ("num_small_regions", "num_lost_regions")
    )
    if small > 0 and rank == 0:
        size = model.config.image_size
        logger.warning_once(
            f"{small} regions of the masks have no pixel at the size of the model, {size} x {size}. {small - lost} "
            f"are kept there with at least one pixel, {lost} are lost and count as normal, as in the authors' code "
            "(see keep_small_regions)."
        )
    result["settings"] = {
        "fpr_limit": metrics.fpr_limit,
        "aupro_convention": aupro_convention,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "image_size": getattr(getattr(model, "config", None), "image_size", None),
        "mask_threshold": options.threshold,
    }
    return result


def _chosen(model: Any, banks: Mapping[str, ReferenceBank], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Argument of the model for a batch of one bank. Other models have no such argument."""
    if banks:
        return {"references": banks[batch["categories"][0]]}
    return {"references": None} if hasattr(model, "references") else {}


def _check_excluded(excluded: Mapping[str, str], count: int) -> None:
    """Warn about images that are not evaluated because they are references."""
    if len(excluded) == count:
        raise ValueError(f"All {count} images are references themselves; expected other images.")
    if not excluded or world()[0]:
        return
    first, name = next(iter(excluded.items()))
    logger.warning(
        f"{len(excluded)} of {count} images are references themselves and are not evaluated: {first} (reference "
        f"{name}){', ...' if len(excluded) > 1 else ''}."
    )


__all__ = ["evaluate_model"]
