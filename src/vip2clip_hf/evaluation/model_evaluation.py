"""Evaluate a ViP²-CLIP model on a dataset: zero-shot, or with photos of good parts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..data.collator import resolve_mask_options
from ..data.targets import undecoded
from ..inference.detector import ViP2ClipDetector
from ..models.vip2clip.image_loading_vip2clip import reading_options
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.distributed import on_first, world
from ..utils.eval_mode import eval_mode
from .detector import Detector
from .evaluator import check_labels, evaluate_detector, wanted_mask_options
from .recorder import EvaluationRecorder
from .reference_rates import add_rates, among_references, banks_of


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
    check_labels(dataset)
    recorder = EvaluationRecorder(len(dataset)) if recorder is None else recorder
    wanted = MaskOptions(threshold=mask_threshold).over(mask_options or MaskOptions())
    wanted = resolve_mask_options(image_processor, mask_options=wanted_mask_options(wanted, aupro_convention))
    categories = dataset["category"]
    banks = banks_of(references, model, categories)
    excluded = on_first(among_references, undecoded(dataset), banks, image_processor) if banks else {}
    _check_excluded(excluded, len(dataset))
    reading = reading_options(image_processor)
    with eval_mode(model):
        result = evaluate_detector(
            detectors_of(model, image_processor, categories, banks or None),
            dataset,
            batch_size=batch_size,
            mask_options=wanted,
            fpr_limit=fpr_limit,
            aupro_convention=aupro_convention,
            num_workers=num_workers,
            progress=progress,
            recorder=recorder,
            skip_unreadable=skip_unreadable,
            bit_depth=reading.get("bit_depth"),
            page=reading.get("page"),
            left_out=excluded,
        )
    settings = result.pop("settings")
    if banks:
        add_rates(result, banks, recorder.scores(), dataset["label"], categories)
        result["references"] = min(map(len, banks.values()))
        result |= {"excluded": excluded} if excluded else {}
    result["settings"] = {
        "fpr_limit": settings["fpr_limit"],
        "aupro_convention": aupro_convention,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "image_size": getattr(getattr(model, "config", None), "image_size", None),
        "mask_threshold": settings["mask_threshold"],
    }
    return result


def detectors_of(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    categories: Sequence[str],
    references: Mapping[str, ReferenceBank] | ReferenceBank | str | None = "auto",
) -> dict[str, Detector]:
    """
    Make the detector of every category: one for all that have the same references.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): model, on the device to run on.
        image_processor ([`ViP2ClipImageProcessor`]): image processor of the model.
        categories (`Sequence[str]`): names of the categories.
        references (`Mapping[str, ReferenceBank]` or [`ReferenceBank`], *optional*, defaults to `"auto"`): see
            [`evaluate_model`].

    Returns:
        `dict[str, ViP2ClipDetector]`: detector by category.

    Raises:
        ValueError: if the references have another type, or a category has none.
    """
    names = list(dict.fromkeys(categories))
    banks = banks_of(references, model, names)
    if not banks:
        return dict.fromkeys(names, ViP2ClipDetector(model, image_processor))
    made = {id(bank): ViP2ClipDetector(model, image_processor, references=bank) for bank in banks.values()}
    return {name: made[id(banks[name])] for name in names}


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


__all__ = ["detectors_of", "evaluate_model"]
