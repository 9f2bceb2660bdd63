"""Evaluation with references: which bank belongs to which image, and the decisions that the references lead to."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.vip2clip.decision_vip2clip import conformal_threshold, min_calibration_images
from ..models.vip2clip.image_loading_vip2clip import load_image, reading_options
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..models.vip2clip.reference_records_vip2clip import photo_hash
from .category_metrics import RATES


if TYPE_CHECKING:
    from datasets import Dataset

# Rate of false alarms of the threshold from the left-out references.
FALSE_ALARM_RATE = 0.05
NUM_THREADS = 4
Banks = Mapping[str, ReferenceBank] | ReferenceBank


def banks_of(references: Any, model: Any, categories: Sequence[str]) -> dict[str, ReferenceBank]:
    """
    Find the bank of every category.

    Args:
        references: one bank for all categories, one per category, `"auto"` for those of the model, or `None`.
        model: the model.
        categories (`Sequence[str]`): names of the categories.

    Returns:
        `dict[str, ReferenceBank]`: bank by category. Empty without references.

    Raises:
        ValueError: if the references have another type, or a category has none.
    """
    if isinstance(references, str):
        if references != "auto":
            raise ValueError(f"references is {references!r}; expected banks of references, 'auto' or None.")
        references = getattr(model, "references", None)
    if references is None:
        return {}
    # Compare names, not classes: remote code is loaded as separate copies of the classes.
    if hasattr(references, "check_model"):
        references = dict.fromkeys(categories, references)
    if not isinstance(references, Mapping) or not all(hasattr(one, "check_model") for one in references.values()):
        raise ValueError(
            f"references is a {type(references).__name__}; expected a ReferenceBank, a mapping from categories to "
            "banks, 'auto' or None."
        )
    if missing := [category for category in dict.fromkeys(categories) if category not in references]:
        raise ValueError(
            f"references has no bank of the category {missing[0]!r}; expected one bank for each of "
            f"{len(set(categories))} categories."
        )
    return {category: references[category] for category in dict.fromkeys(categories)}


def among_references(dataset: "Dataset", banks: Mapping[str, ReferenceBank], image_processor: Any) -> dict[str, str]:
    """
    Find the images that are references themselves, with the same pixels. All images are opened.

    Args:
        dataset (`datasets.Dataset`): dataset, not decoded.
        banks (`Mapping[str, ReferenceBank]`): bank by category.
        image_processor ([`ViP2ClipImageProcessor`]): image processor, which says how images are read.

    Returns:
        `dict[str, str]`: name of the reference by image id, for the images that are references. Images that
        cannot be read are left out.
    """
    known = {category: {photo.sha256: photo.name for photo in bank.photos} for category, bank in banks.items()}
    options = reading_options(image_processor)

    def reference(position: int) -> str | None:
        row = dataset[position]
        try:
            image = load_image(row["image"], **options)
        except (OSError, ValueError):
            return None  # reported by the evaluation
        return known[row["category"]].get(photo_hash(image))

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(reference, range(len(dataset))))
    return {image_id: name for image_id, name in zip(dataset["image_id"], found) if name is not None}


def add_rates(
    result: dict[str, Any],
    banks: Mapping[str, ReferenceBank],
    scores: np.ndarray,
    labels: Sequence[int],
    categories: Sequence[str],
) -> None:
    """
    Add the threshold from the left-out references, and the rates it leads to, to a result.

    Args:
        result (`dict`): result of [`AnomalyMetrics.compute`]. Each category and the mean get `reference_threshold`,
            `detection_rate` (anomalous images with a greater score) and `false_alarm_rate` (normal images with a
            greater score). They are NaN, with the reason in `undefined`, if there are too few references.
        banks (`Mapping[str, ReferenceBank]`): bank by category.
        scores (`np.ndarray` of shape `(num_images,)`): scores of all images, NaN for those left out.
        labels, categories (`Sequence`): label and category of each image.
    """
    label, names, scores = np.asarray(labels), np.asarray(categories), np.asarray(scores)
    for category, found in result["categories"].items():
        threshold, reason = _threshold(banks[category])
        found["references"], found["reference_threshold"] = len(banks[category]), threshold
        for name, value in (("detection_rate", 1), ("false_alarm_rate", 0)):
            members = scores[(names == category) & (label == value) & ~np.isnan(scores)]
            found[name] = math.nan if reason or not len(members) else float((members > threshold).mean())
            if reason or not len(members):
                found["undefined"][name] = reason or f"no {'anomalous' if value else 'normal'} images"
        if reason:
            found["undefined"]["reference_threshold"] = reason
    mean = result["mean"]
    for name in RATES[1:]:
        values = {category: found[name] for category, found in result["categories"].items()}
        defined = [value for value in values.values() if not math.isnan(value)]
        mean[name] = float(np.mean(defined)) if defined else math.nan
        if missing := [category for category, value in values.items() if math.isnan(value)]:
            reasons = dict.fromkeys(result["categories"][category]["undefined"][name] for category in missing)
            mean["undefined"][name] = f"{'; '.join(reasons)} ({', '.join(missing)})"


def _threshold(bank: ReferenceBank) -> tuple[float, str]:
    """Return the threshold, or NaN and the reason."""
    needed = min_calibration_images(FALSE_ALARM_RATE)
    scores: list[float] = bank.left_out_scores().tolist() if len(bank) >= needed else []
    if bank.options.tile_size:
        return math.nan, "the references were read in tiles, the evaluated images are not"
    if len(scores) < needed:
        return math.nan, (
            f"a false-alarm rate of {FALSE_ALARM_RATE:g} needs at least {needed} references, found {len(bank)}"
        )
    return conformal_threshold(scores, FALSE_ALARM_RATE), ""


__all__ = ["FALSE_ALARM_RATE", "RATES", "add_rates", "among_references", "banks_of"]
