"""Run the methods of a comparison on the same photos, and measure quality, time and memory."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.targets import count_masks
from ..evaluation.detector import check_output
from ..evaluation.evaluator import add_batch, detector_loader, one_detector_batches
from ..evaluation.regions import EvaluationMetrics
from ..evaluation.subjects import map_maximum_of
from ..utils.device_clock import DeviceClock
from ..utils.unreadable import check_unreadable
from .measurement import Measurement, RunOptions
from .shared_tower import TowerGroup


if TYPE_CHECKING:
    from datasets import Dataset


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
    reading = group.competitors[0].subject.reading()  # type: ignore[union-attr]  # that of all in the group
    loader = detector_loader(dataset, batches, first, masks, options.mask_options, reading, options.num_workers)
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
            _check_finite(measured.competitor.name, scores, checked, batch["image_ids"])
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


def _check_finite(name: str, scores: torch.Tensor, maps: torch.Tensor | None, image_ids: Sequence[str]) -> None:
    for what, values in (("scores", scores), ("maps", maps)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"The {what} of {name} contain NaN or infinite values; expected finite numbers. The images of the "
                f"batch are {list(image_ids)}."
            )


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


__all__ = ["run_group"]
