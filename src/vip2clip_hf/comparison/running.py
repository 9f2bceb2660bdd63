"""Run the methods of a comparison on the same photos, and measure quality, time and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.targets import count_masks
from ..evaluation.detector import check_output
from ..evaluation.evaluator import add_batch, detector_loader, one_detector_batches
from ..evaluation.regions import EvaluationMetrics
from ..evaluation.subjects import map_maximum_of
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..utils.device_clock import DeviceClock
from ..utils.unreadable import check_unreadable
from .competitors import Competitor
from .shared_tower import TowerGroup


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Measurement:
    """
    What a method computed, and what it took.

    Args:
        competitor ([`Competitor`]): the method.
        scores (`np.ndarray` of shape `(num_images,)`): scores, NaN for photos that could not be read.
        maps (`dict[int, np.ndarray]`): anomaly maps of the photos of the sheet, by position.
        metrics ([`EvaluationMetrics`], *optional*): metrics. `None` without labels.
        shared_with (`list[str]`): names of the methods for which the vision tower ran at the same time.
        num_timed (`int`): number of photos that were timed.
        tower_seconds (`float`): time of the shared vision tower. 0 if the method ran on its own.
        own_seconds (`float`): time of the rest; of all if the method ran on its own.
        peak_memory (`int`): largest memory in bytes, with that of the shared vision tower.
        map_maximum (`float`): what a map is divided by to draw methods on one scale.
    """

    competitor: Competitor
    scores: np.ndarray
    maps: dict[int, np.ndarray] = field(default_factory=dict)
    metrics: EvaluationMetrics | None = None
    shared_with: list[str] = field(default_factory=list)
    num_timed: int = 0
    tower_seconds: float = 0.0
    own_seconds: float = 0.0
    peak_memory: int = 0
    map_maximum: float = 1.0


@dataclass
class RunOptions:
    """
    How photos are read and evaluated.

    Args:
        batch_size (`int`): photos per batch.
        num_workers (`int`): processes that decode photos.
        mask_options ([`MaskOptions`]): how to read masks, all set.
        reading (`Mapping[str, Any]`): how to read photos, see [`load_image`].
        fpr_limit, aupro_convention: see [`AnomalyMetrics`].
        skip_unreadable (`bool`): whether to leave out photos that cannot be read.
        progress (`bool`): whether to show a progress bar.
    """

    batch_size: int
    num_workers: int
    mask_options: MaskOptions
    reading: Mapping[str, Any]
    fpr_limit: float
    aupro_convention: str
    skip_unreadable: bool
    progress: bool


def run_group(
    group: TowerGroup,
    dataset: "Dataset",
    references: Mapping[str, Any],
    drawn: Sequence[int],
    clock: DeviceClock,
    options: RunOptions,
) -> tuple[list[Measurement], dict[str, str]]:
    """
    Run methods with the same vision tower: the tower once for each batch, then each method on its hidden states.

    Args:
        group ([`TowerGroup`]): the methods.
        dataset (`datasets.Dataset`): the photos, all with a label or none.
        references (`Mapping[str, Any]`): encoded photos of good parts by method.
        drawn (`Sequence[int]`): positions of the photos whose maps are kept.
        clock ([`DeviceClock`]): measures times and memory.
        options ([`RunOptions`]): how photos are read.

    Returns:
        `tuple[list[Measurement], dict[str, str]]`: one measurement for each method, and the reason by image id of
        each photo that could not be read.

    Raises:
        OSError: if photos cannot be read and `skip_unreadable` is not set.
        ValueError: if a score or map is not finite, or a mask is invalid.
    """
    categories, labelled = dataset["category"], any(label is not None for label in dataset["label"])
    detectors: dict[str, Mapping[str, Any]] = {}
    found: dict[str, Measurement] = {}
    for one in group.competitors:
        subject: Any = one.subject
        detectors[one.key] = subject.detectors(categories, references.get(one.key))
        metrics = EvaluationMetrics(options.fpr_limit, options.aupro_convention) if labelled else None
        others = [other.name for other in group.competitors if group.tower is not None]
        found[one.key] = Measurement(one, np.full(len(dataset), np.nan), metrics=metrics, shared_with=others)
        found[one.key].map_maximum = map_maximum_of(detectors[one.key])
    first = next(iter(detectors.values()))
    # Detectors of all methods change with the category, if those of one do.
    changing = max(detectors.values(), key=lambda each: len({id(one) for one in each.values()}))
    batches = one_detector_batches(range(len(dataset)), categories, changing, options.batch_size)
    size = next(iter(first.values())).image_size
    masks = size if labelled and count_masks(dataset) else None
    loader = detector_loader(
        dataset, batches, first, masks, options.mask_options, options.reading, options.num_workers
    )
    unreadable: dict[str, str] = {}
    title, warm, kept_maps = ", ".join(one.name for one in group.competitors), False, set(drawn)
    for rows, (batch, kept, failed) in zip(batches, tqdm(loader, desc=title, disable=not options.progress)):
        unreadable.update(failed)
        if not kept:
            continue
        of_category = {key: each[batch["categories"][0]] for key, each in detectors.items()}
        for detector in of_category.values():
            if hasattr(detector, "encode"):
                detector.encode()  # prompts and references, once for each category
        if not warm:  # the first run of a device is slower
            _run(group, of_category, batch["inputs"][:1], clock)
            warm = True
        outputs, tower_seconds, own_seconds, memory = _run(group, of_category, batch["inputs"], clock)
        for key, (scores, maps) in outputs.items():
            measured = found[key]
            scores, checked = check_output(of_category[key], (scores, maps), len(kept))
            if measured.metrics is not None:
                add_batch(measured.metrics, batch, scores, checked)
            measured.num_timed += len(kept)
            measured.tower_seconds += tower_seconds
            measured.own_seconds += own_seconds[key]
            measured.peak_memory = max(measured.peak_memory, memory[key])
            for number, place in enumerate(rows[number] for number in kept):
                measured.scores[place] = float(scores[number])
                if place in kept_maps and checked is not None:
                    measured.maps[place] = checked[number].float().cpu().numpy()
    check_unreadable(unreadable, len(dataset), options.skip_unreadable)
    return list(found.values()), unreadable


def _run(
    group: TowerGroup, detectors: Mapping[str, Any], inputs: torch.Tensor, clock: DeviceClock
) -> tuple[dict[str, Any], float, dict[str, float], dict[str, int]]:
    """Return outputs, time of the shared tower, time of each method, and memory of each method."""
    states: dict[str, Any] = {}
    tower_seconds, tower_memory = 0.0, 0
    if group.tower is not None:
        clock.reset_memory()
        hidden, tower_seconds = clock.timed(lambda: group.encode(inputs))
        tower_memory = clock.peak_memory()
        states["hidden_states"] = hidden
    outputs, seconds, memory = {}, {}, {}
    for key, detector in detectors.items():
        clock.reset_memory()
        outputs[key], seconds[key] = clock.timed(lambda one=detector: one.score(inputs, **states))  # type: ignore[misc]
        memory[key] = max(tower_memory, clock.peak_memory())
    return outputs, tower_seconds, seconds, memory


__all__ = ["Measurement", "RunOptions", "run_group"]
