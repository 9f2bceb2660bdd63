"""Measure the time and memory of training, with and without the feature cache, as in Table 3 of the paper."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..training.arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from ..training.dry_run import plan_training
from ..training.run import TrainingKind
from ..utils.hardware import describe_hardware
from ..utils.versions import versions


def measure_training(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: ViP2ClipTrainingArguments,
    *,
    caches: Sequence[bool] = (False, True),
    num_images: int | None = None,
    measured: Mapping[bool, float] | None = None,
    kind: TrainingKind | None = None,
) -> list[dict[str, Any]]:
    """
    Measure a few steps of a training, and extrapolate them to the training. See [`plan_training`].

    The vision tower runs between the steps, so every time comes with its ratio to the tower. A measured time of the
    whole training replaces the extrapolated one.

    Args:
        model_arguments ([`ModelArguments`]): the backbone and the settings of the model.
        data_arguments ([`DataArguments`]): the datasets.
        arguments ([`ViP2ClipTrainingArguments`]): the training arguments. `cache_features` is ignored.
        caches (`Sequence[bool]`, defaults to `(False, True)`): without and with the feature cache.
        num_images (`int`, *optional*): number of training images to extrapolate to. Defaults to those of the data.
        measured (`Mapping[bool, float]`, *optional*): seconds of a complete training of `num_images` images, by
            whether it used the feature cache.
        kind ([`TrainingKind`], *optional*): the method, by default ViP²-CLIP.

    Returns:
        `list[dict]`: JSON-serializable, one for each of `caches`: `cache`, `hardware`, `versions`, `dtype`,
        `batch_size`, `image_size`, `measured_steps`, `step_seconds`, `image_seconds` (of a step, per image),
        `cache_image_seconds` (or `None`), `tower_image_seconds`, `step_ratio` (`image_seconds` divided by
        `tower_image_seconds`), `num_images`, `num_steps`, `seconds` (of the training), `extrapolated` (whether
        `seconds` is), `ratio` (`seconds` per image and epoch divided by `tower_image_seconds`), `memory_bytes`,
        `memory_kind` and `trainable_parameters`.

    Raises:
        ValueError: as [`plan_training`], or if `num_images` is not positive.
        OSError, RuntimeError: as [`plan_training`].
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images is {num_images}; expected at least 1.")
    results = []
    for cache in caches:
        # The name of the folder only switches the cache on: plan_training uses a temporary one.
        chosen = replace(arguments, cache_features="cache" if cache else None)
        plan = plan_training(model_arguments, data_arguments, chosen, with_tower=True, kind=kind)
        count = num_images or sum(one["num_normal"] + one["num_anomalous"] for one in plan["train_data"])
        steps, seconds = plan["num_steps"], plan["seconds"]
        if num_images is not None:
            steps, seconds = _extrapolate(plan, chosen, num_images)
        given = (measured or {}).get(cache)
        seconds = seconds if given is None else given
        per_step, tower = plan["images_per_step"], plan["tower_image_seconds"]
        results.append(
            {
                "cache": cache,
                "hardware": describe_hardware(arguments.device),
                "versions": versions(),
                "dtype": "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
                "batch_size": per_step,
                "image_size": model_arguments.image_size,
                "measured_steps": plan["measured_steps"],
                "step_seconds": plan["step_seconds"],
                "image_seconds": plan["step_seconds"] / per_step,
                "cache_image_seconds": plan["cache_image_seconds"],
                "tower_image_seconds": tower,
                "step_ratio": plan["step_seconds"] / per_step / tower,
                "num_images": count,
                "num_steps": steps,
                "seconds": seconds,
                "extrapolated": given is None,
                "ratio": seconds / (steps * per_step) / tower,
                "memory_bytes": plan["memory_bytes"],
                "memory_kind": plan["memory_kind"],
                "trainable_parameters": plan["trained_weights"],
            }
        )
    return results


def _extrapolate(plan: dict[str, Any], arguments: ViP2ClipTrainingArguments, num_images: int) -> tuple[int, float]:
    """Return the steps and the seconds of the training if it had this number of images."""
    steps = arguments.max_steps
    if steps <= 0:
        steps = math.ceil(arguments.num_train_epochs * math.ceil(num_images / plan["images_per_step"]))
    seconds = steps * plan["step_seconds"]
    if plan["cache_image_seconds"] is not None:
        seconds += num_images * (arguments.augmentation_views or 1) * plan["cache_image_seconds"]
    return steps, seconds


__all__ = ["measure_training"]
