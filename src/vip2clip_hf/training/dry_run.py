"""Describe a training before it starts, with times measured on a few steps."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..utils.device_clock import DeviceClock, device_clock
from .arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from .feature_cache import FeatureCache
from .run import PreparedTraining, TrainingKind, prepare_training


if TYPE_CHECKING:
    from datasets import Dataset

# Measured steps, after one that is not counted.
MEASURED_STEPS = 3


def plan_training(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: ViP2ClipTrainingArguments,
    *,
    with_tower: bool = False,
    kind: TrainingKind | None = None,
) -> dict[str, Any]:
    """
    Load the data and the model, run a few steps on a part of the data, and estimate the time of the training.

    Nothing is written, except temporary files. The estimate leaves out the evaluation and saving.

    Args:
        model_arguments ([`ModelArguments`]): the backbone and the settings of the model.
        data_arguments ([`DataArguments`]): the datasets.
        arguments ([`ViP2ClipTrainingArguments`]): the training arguments.
        with_tower (`bool`, defaults to `False`): whether to measure the vision tower alone between the steps.
        kind ([`TrainingKind`], *optional*): the method, by default ViP²-CLIP.

    Returns:
        `dict`: `train_data` and `eval_data` (for each dataset `name`, `num_normal`, `num_anomalous` and `num_masks`),
        `trained_weights` and `frozen_weights` (numbers of weights), `images_per_step`, `num_steps`, `num_epochs`,
        `device`, `measured_steps`, `step_seconds`, `memory_bytes` (largest memory of the device, or of the process on
        a CPU) and `memory_kind` (what it counts), `cache_image_seconds` and `cache_bytes` (with a feature cache),
        `tower_image_seconds` (with `with_tower`, the vision tower on a batch, per image), and `seconds`, the
        estimated time.

    Raises:
        ValueError: as [`run_training`], or if there are several processes.
        OSError, RuntimeError: as [`run_training`].
    """
    if arguments.world_size > 1:
        raise ValueError(
            f"A dry run uses one process; found {arguments.world_size}. Start it without accelerate launch."
        )
    with tempfile.TemporaryDirectory() as folder:
        quiet = _without_output(arguments, folder)
        prepared = prepare_training(model_arguments, data_arguments, quiet, kind=kind)
        trainer = prepared.trainer
        num_images = sum(map(len, prepared.train_sets))
        per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
        per_epoch = math.ceil(num_images / per_step)
        num_steps = (
            arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * per_epoch)
        )
        measured = _measure(prepared, quiet, per_step, Path(folder), with_tower)
    weights = list(trainer.model.parameters())
    seconds = num_steps * measured["step_seconds"]
    if measured["cache_image_seconds"] is not None:
        seconds += num_images * (arguments.augmentation_views or 1) * measured["cache_image_seconds"]
    return {
        "train_data": [_counts(s.name, d) for s, d in zip(prepared.train_sources, prepared.train_sets)],
        "eval_data": [_counts(s.name, d) for s, d in zip(prepared.eval_sources, prepared.eval_sets)],
        "trained_weights": sum(w.numel() for w in weights if w.requires_grad),
        "frozen_weights": sum(w.numel() for w in weights if not w.requires_grad),
        "images_per_step": per_step,
        "num_steps": num_steps,
        "num_epochs": num_steps / per_epoch,
        "device": str(arguments.device),
        **measured,
        "seconds": seconds,
    }


def _without_output(arguments: ViP2ClipTrainingArguments, folder: str) -> ViP2ClipTrainingArguments:
    """Return arguments for a training that writes nothing but temporary files."""
    cache = None if arguments.cache_features is None else str(Path(folder, "cache"))
    return replace(
        arguments, output_dir=str(Path(folder, "run")), cache_features=cache, save_strategy=SaveStrategy.NO,
        eval_strategy=IntervalStrategy.NO, logging_strategy=IntervalStrategy.NO, load_best_model_at_end=False,
        metric_for_best_model=None, push_to_hub=False, report_to="none", disable_tqdm=True,
        resume_from_checkpoint=None,
    )  # fmt: skip


def _measure(
    prepared: PreparedTraining, arguments: ViP2ClipTrainingArguments, per_step: int, folder: Path, with_tower: bool
) -> dict[str, Any]:
    """Measure steps, and the feature cache, on images that are spread over the training data."""
    trainer, dataset = prepared.trainer, prepared.train_dataset
    model: Any = trainer.model
    num_images = len(dataset)
    count = min(num_images, per_step * (MEASURED_STEPS + 1))
    rows = sorted({number * num_images // count for number in range(count)})
    subset = dataset.select(rows)
    found: dict[str, Any] = {"cache_image_seconds": None, "cache_bytes": None}
    clock = device_clock(arguments.device if arguments.device.type == "cuda" else "cpu")
    if arguments.cache_features is not None:
        views = arguments.augmentation_views or 1
        clock.reset_memory()
        start = time.perf_counter()
        cache = FeatureCache.build(
            model.to(arguments.device).eval(), trainer.image_processor, subset, folder / "cache",
            dtype=arguments.cache_dtype, augmentation=trainer.augmentation, num_views=views,
            mask_options=trainer.mask_options, batch_size=arguments.per_device_train_batch_size,
            autocast=trainer.compute_loss_context_manager,
        )  # fmt: skip
        clock.synchronize()
        found["cache_memory"] = clock.peak_memory()
        found["cache_image_seconds"] = (time.perf_counter() - start) / (len(rows) * views)
        found["cache_bytes"] = cache.size_of() * num_images // len(rows)
    tower: Callable[[], None] | None = None
    per_batch = min(len(rows), arguments.per_device_train_batch_size)
    if with_tower:
        pixels = torch.randn(per_batch, 3, model.config.image_size, model.config.image_size, device=arguments.device)

        @torch.inference_mode()
        def run_tower() -> None:
            with trainer.compute_loss_context_manager():  # in the precision of the training
                model.clip.vision_model(pixels.to(model.dtype), interpolate_pos_encoding=True)

        tower = run_tower
    steps = _Steps(clock, tower)
    steps_trainer = type(trainer)(
        model,
        replace(arguments, max_steps=MEASURED_STEPS + 1, average_weights_from=None),
        trainer.image_processor,
        train_dataset=subset,
        mask_options=trainer.mask_options,
        training_sets=[],
        callbacks=[steps],
    )
    steps_trainer.remove_callback(PrinterCallback)  # it would print the time of the measured steps
    steps_trainer.train()
    found["measured_steps"] = len(steps.seconds[1:] or steps.seconds)
    found["step_seconds"] = statistics.median(steps.seconds[1:] or steps.seconds)
    tower_seconds = steps.tower_seconds[1:] or steps.tower_seconds
    found["tower_image_seconds"] = statistics.median(tower_seconds) / per_batch if tower_seconds else None
    found["memory_bytes"] = max(steps.memory, found.pop("cache_memory", 0))
    found["memory_kind"] = clock.memory_kind
    return found


class _Steps(TrainerCallback):
    """
    Measure the steps of a training, from the end of a step to the end of the next, with reading the images.

    Args:
        clock ([`DeviceClock`]): the clock of the device.
        tower (`Callable`, *optional*): measured after each step.
    """

    def __init__(self, clock: DeviceClock, tower: Callable[[], None] | None) -> None:
        self.seconds: list[float] = []
        self.tower_seconds: list[float] = []
        self.memory = 0
        self._clock, self._tower = clock, tower
        self._start = 0.0

    def _begin(self) -> None:
        self._clock.reset_memory()
        self._start = time.perf_counter()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._clock.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self.memory = max(self.memory, self._clock.peak_memory())
        if self._tower is not None:
            self.tower_seconds.append(self._clock.timed(self._tower)[1])
        self._begin()


def _counts(name: str, dataset: "Dataset") -> dict[str, Any]:
    labels = dataset["label"]
    anomalous = sum(label == 1 for label in labels)
    masks = sum(mask is not None for mask in dataset["mask"])
    return {"name": name, "num_normal": len(labels) - anomalous, "num_anomalous": anomalous, "num_masks": masks}


__all__ = ["plan_training"]
