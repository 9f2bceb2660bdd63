"""The recipe of a training: the settings that change the result, for resuming and for the model card."""

import math
from dataclasses import fields
from enum import Enum
from typing import Any

from transformers import SchedulerType


# Arguments that do not change the trained weights. All others are part of the recipe, also those of later versions.
_PREFIXES = (
    "logging_",
    "log_",
    "save_",
    "hub_",
    "push_",
    "trackio_",
    "ddp_",
    "dataloader_",
    "report_",
    "do_",
    "debug",
)
WITHOUT_EFFECT = {
    "output_dir", "overwrite_output_dir", "allow_changed_recipe", "resume_from_checkpoint", "disable_tqdm", "run_name",
    "project", "eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only",
    "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
    "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "enable_jit_checkpoint",
    "restore_callback_states_from_checkpoint", "local_rank", "skip_memory_metrics", "remove_unused_columns",
    "label_names", "train_sampling_strategy", "length_column_name", "include_num_input_tokens_seen", "use_cache",
    "torch_empty_cache_steps", "average_tokens_across_devices", "cache_features", "accelerator_config",
    "parallelism_config", "fsdp", "fsdp_config", "deepspeed", "optim", "optim_args", "optim_target_modules",
    "metric_for_best_model", "greater_is_better", "auto_find_batch_size",
}  # fmt: skip
# Arguments that change the result by rounding only. A difference is logged.
ROUNDING = {
    "per_device_train_batch_size", "gradient_accumulation_steps", "use_cpu", "tf32", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "use_liger_kernel", "liger_kernel_config",
    "full_determinism",
}  # fmt: skip
# They change the order of the data, although their names start with a prefix above.
_WITH_EFFECT = {"dataloader_drop_last"}
# Arguments that matter only if the best checkpoint is loaded at the end.
SELECTION = ("eval_strategy", "eval_steps", "eval_delay", "metric_for_best_model", "greater_is_better")
# Schedules that do not depend on the length of the training.
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")
_LENGTH = ("num_train_epochs", "max_steps")


def recipe_of(trainer: Any) -> dict[str, Any]:
    """
    Return the settings of a trainer that change the result of training.

    A training can be made longer if its schedule does not depend on the length, so the number of epochs is then not
    part of the recipe. Batches count as images per step.

    Args:
        trainer ([`ViP2ClipTrainer`]): the trainer.

    Returns:
        `dict[str, Any]`: values by name, JSON-serializable.
    """
    args = trainer.args
    found = {name: value for name, value in _arguments(trainer).items() if name not in ROUNDING}
    found["images_per_step"] = _images_per_step(trainer)
    found["data_seed"] = args.seed if args.data_seed is None else args.data_seed
    found = {name: value for name, value in found.items() if name not in _LENGTH}
    if _schedule(trainer) not in _ENDLESS or 0 < args.warmup_steps < 1:
        found["length"] = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    if args.cache_features is None:
        del found["cache_dtype"]
    found["features"] = "computed" if args.cache_features is None else "cached"
    if args.load_best_model_at_end:
        found.update({name: _plain(getattr(args, name)) for name in SELECTION})
    frozen = [name for name, parameter in trainer.model.named_parameters() if not parameter.requires_grad]
    found["frozen_weights"] = [name for name in frozen if not name.startswith("clip.")]
    found["optimizer"] = trainer.optimizer_name
    settings = trainer.image_processor.to_dict()
    for name in ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
                 "image_std", "mask_threshold"):  # fmt: skip
        if name in settings:
            found[f"image_processor.{name}"] = _plain(settings[name])
    return dict(sorted(found.items()))


def rounding_of(trainer: Any) -> dict[str, Any]:
    """
    Return the settings of a trainer that change the result by rounding only.

    Args:
        trainer ([`ViP2ClipTrainer`]): the trainer.

    Returns:
        `dict[str, Any]`: values by name, JSON-serializable.
    """
    found = {name: value for name, value in _arguments(trainer).items() if name in ROUNDING}
    return dict(sorted({**found, "processes": trainer.args.world_size}.items()))


def _arguments(trainer: Any) -> dict[str, Any]:
    """Return the arguments that can change the result."""
    names = [field.name for field in fields(trainer.args)]
    kept = [
        name
        for name in names
        if name in _WITH_EFFECT or (name not in WITHOUT_EFFECT and not name.startswith(_PREFIXES))
    ]
    return {name: _plain(getattr(trainer.args, name, None)) for name in kept}


def _plain(value: Any) -> Any:
    """Convert a value to what JSON returns for it."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _schedule(trainer: Any) -> str:
    return SchedulerType(trainer.args.lr_scheduler_type).value


def _images_per_step(trainer: Any) -> int:
    args = trainer.args
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def describe_recipe(trainer: Any) -> dict[str, Any]:
    """
    Describe a training for the model card: what was run, not what was planned.

    Args:
        trainer ([`ViP2ClipTrainer`]): the trainer, after training.

    Returns:
        `dict[str, Any]`: text by name.
    """
    args, state = trainer.args, trainer.state
    warmup = args.get_warmup_steps(state.max_steps) if args.warmup_steps and state.max_steps > 0 else 0
    parts = [
        f"{trainer.optimizer_name}, {_schedule(trainer)} {trainer.describe_rates()}",
        *([f"{warmup} warm-up steps"] if warmup else []),
        f"weight decay {args.weight_decay:g}",
        *([f"gradients clipped to {args.max_grad_norm:g}"] if args.max_grad_norm else []),
    ]
    split = [
        f"{count} {name}"
        for count, name in (
            (args.per_device_train_batch_size, "per batch"),
            (args.gradient_accumulation_steps, "accumulated batches"),
            (args.world_size, "processes"),
        )
        if count > 1 or name == "per batch"
    ]
    epochs = round(state.epoch or 0, 2)
    batches = f"{_images_per_step(trainer)} images, {epochs:g} epochs, {state.global_step} steps"
    if len(split) > 1:
        batches += f" ({' x '.join(split)})"
    if state.global_step < state.max_steps:
        batches += f"; stopped before the planned {state.max_steps} steps"
    seed = args.seed if args.data_seed is None else args.data_seed
    found = {
        "optimizer": ", ".join(parts),
        "batches": batches,
        "order of the data": f"each image once per epoch, in a new random order per epoch from seed {seed}",
        "seed": args.seed,
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
    }
    if args.cache_features is not None:
        found["features"] = f"cached in {args.cache_dtype}"
    if args.augmentation is not None:
        views = f", {args.augmentation_views} views" if args.augmentation_views else ""
        found["augmentation"] = ", ".join(args.augmentation) + views
    if (average := trainer._average) is not None:
        found["averaged weights"] = f"over {average.count} steps, from epoch {average.start:g} on"
    masks = {name: value for name, value in trainer.mask_settings().items() if value is not None}
    if masks:
        found["masks"] = ", ".join(f"{name} {value}" for name, value in masks.items())
    if (run := trainer.run) is not None:
        found["run"] = run.run_id
        if run.resumed:
            found["resumed"] = "; ".join(map(_describe_resume, run.resumed))
    best = state.best_model_checkpoint
    if args.load_best_model_at_end and best is not None and state.best_metric is not None:
        value = state.best_metric
        found["chosen step"] = f"{state.best_global_step}, with the best {args.metric_for_best_model}" + (
            f" ({value:.4f}) on the evaluation data" if math.isfinite(value) else " on the evaluation data"
        )
    return found


def _describe_resume(entry: dict[str, Any]) -> str:
    text = f"at step {entry['step']}"
    if changed := entry.get("changed"):
        text += " with other settings: " + ", ".join(
            f"{n} (was {was}, then {now})" for n, (was, now) in changed.items()
        )
    return text


__all__ = ["describe_recipe", "recipe_of", "rounding_of"]
