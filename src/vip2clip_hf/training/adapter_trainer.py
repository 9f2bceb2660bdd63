"""Trainer of adapters on a frozen CLIP, with the Trainer of transformers: what all methods have in common."""

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..data.collator import ViP2ClipCollator, resolve_mask_options
from ..evaluation.metrics import METRICS
from ..models.vip2clip.image_loading_vip2clip import reading_options
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .arguments import ViP2ClipTrainingArguments
from .augmentation import Augmentation
from .averaging import WeightAveraging
from .callbacks import TrainingHooks, replace_loggers
from .checks import check_loss, check_trained_weights, check_training_data
from .feature_cache import CachedRows, FeatureCache
from .recorded_trainer import RecordedTrainer
from .rows import EpochSampler, TrainingRows
from .selection import check_selection_metric


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
LOSS_PARTS = ("image", "focal", "dice_anomalous", "dice_normal")


class AdapterTrainer(RecordedTrainer):
    """
    Base class of the trainers of adapters: the data, the loss of a step, the feature cache and the evaluation.

    A subclass creates the optimizer, weights the parts of the loss, and evaluates a dataset.

    Args:
        model, args, image_processor, train_dataset, eval_dataset, mask_threshold, mask_options, training_sets, \
        callbacks: see [`ViP2ClipTrainer`].
        class_names (`bool`, defaults to `False`):
            Whether batches contain the categories of the images, as `class_name`.

    Raises:
        ValueError: see [`ViP2ClipTrainer`].
    """

    args: ViP2ClipTrainingArguments
    model: Any

    def __init__(
        self,
        model: Any,
        args: ViP2ClipTrainingArguments,
        image_processor: ViP2ClipImageProcessor,
        train_dataset: "Dataset | None" = None,
        eval_dataset: "Dataset | dict[str, Dataset] | None" = None,
        *,
        mask_threshold: int | float | None = None,
        mask_options: MaskOptions | None = None,
        training_sets: list[dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        class_names: bool = False,
    ) -> None:
        check_image_processor(image_processor, model.config.image_size)
        check_trained_weights(model)
        options = resolve_mask_options(image_processor, mask_threshold, mask_options)
        self.image_processor, self.mask_options = image_processor, options
        self.training_sets, self.class_names = training_sets, class_names
        self.results: dict[str, dict[str, Any]] = {}
        self.augmentation = None
        if args.augmentation is not None:
            self.augmentation = Augmentation(args.augmentation, args.seed, reading_options(image_processor))
        self._rows = train_dataset
        pixel_labels = train_dataset is None or check_training_data(train_dataset, self.augmentation, options)
        self._collator = ViP2ClipCollator(image_processor, pixel_labels, mask_options=options, class_names=class_names)
        rows = None if train_dataset is None else TrainingRows(train_dataset, self.augmentation, options)
        self._average = None
        if args.average_weights_from is not None:
            self._average = WeightAveraging(model, args.average_weights_from)
        added = [] if self._average is None else [self._average]
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collator,
            train_dataset=rows,
            eval_dataset=eval_dataset,
            processing_class=image_processor,
            callbacks=[TrainingHooks(self._begin, self._begin_epoch), *added, *(callbacks or [])],
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP or DeepSpeed is enabled; expected neither. The adapters have only a few million weights."
            )
        replace_loggers(self, lambda: self._last_loss)
        self._parts, self._parts_since = dict[str, torch.Tensor](), 0
        self._last_loss: float | torch.Tensor = math.nan

    # Optimization

    def loss_weights(self) -> Mapping[str, float]:
        """Return the weight of each part of the loss. The part `image` is a mean over images, others over masks."""
        raise NotImplementedError

    def model_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """
        Convert a batch of the collator to arguments of the model.

        Args:
            inputs (`dict[str, Any]`): the batch.

        Returns:
            `dict[str, Any]`: arguments of the model.
        """
        return inputs

    def evaluate_dataset(self, dataset: "Dataset", progress: bool | str) -> dict[str, Any]:
        """
        Evaluate the model on a dataset.

        Args:
            dataset (`datasets.Dataset`): the dataset.
            progress (`bool` or `str`): whether to show a progress bar, or its title.

        Returns:
            `dict[str, Any]`: result of [`evaluate_model`] or [`evaluate_detector`].
        """
        raise NotImplementedError

    def prepare_model(self) -> None:
        """Remove from the model what belongs to its weights before training. Called before the first step."""

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Count the images, and the images with a valid mask, of a step: over all its batches and all processes."""
        counts = torch.zeros(2)
        for batch in batch_samples:
            images = batch["num_images"]
            valid = batch.get("mask_valid")
            counts += torch.tensor([images, images if valid is None else int(valid.sum())])
        return self.accelerator.reduce(counts.to(device), reduction="sum")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        Compute the contribution of a batch to the loss of the step.

        The image loss is averaged over all images of the step, the pixel losses over all images with a valid mask.

        Args:
            model, inputs, return_outputs: see `Trainer.compute_loss`.
            num_items_in_batch (`torch.Tensor` of shape `(2,)`, *optional*): number of images, and of images with a
                valid mask, in the step. Defaults to those of the batch.

        Returns:
            `torch.Tensor` of shape `()`, with `return_outputs` a tuple of the loss and the model outputs.

        Raises:
            RuntimeError: if the loss is not finite. The message lists the images and the last complete checkpoint.
        """
        inputs = dict(inputs)
        ids, images = inputs.pop("image_ids", []), inputs.pop("num_images", None)
        outputs = model(**self.model_inputs(inputs))
        if not isinstance(num_items_in_batch, torch.Tensor) or images is None:
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        valid = inputs.get("mask_valid")
        valid = images if valid is None else valid.sum()
        image_weight, pixel_weight = images / num_items_in_batch[0], valid / num_items_in_batch[1].clamp_min(1)
        parts = {
            name: part * (image_weight if name == "image" else pixel_weight)
            for name, part in outputs.loss_components.items()
        }
        weights = self.loss_weights()
        loss = sum(weights[name] * part for name, part in parts.items())
        loss = loss + 0.0 * outputs.loss  # all parameters need a gradient in every process
        check_loss(loss, outputs.loss, self.state.global_step + 1, ids, self.args.output_dir)
        for name, part in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + part.detach()
        self._last_loss = outputs.loss.detach()
        # The Trainer divides by the number of accumulated batches, distributed training by the number of processes.
        loss = loss * (self.current_gradient_accumulation_steps * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log values. Adds the parts of the loss, averaged over the same steps as the loss."""
        if "loss" in logs and self._parts:
            steps = max(1, self.state.global_step - self._parts_since)
            names = [name for name in LOSS_PARTS if name in self._parts]
            means = self.accelerator.reduce(
                torch.stack([self._parts[name] for name in names]) / steps, reduction="sum"
            )
            logs = {"loss": logs["loss"], **{f"loss_{n}": m.item() for n, m in zip(names, means)}, **logs}
            self._parts, self._parts_since = {}, self.state.global_step
        super().log(logs, *args, **kwargs)

    def _begin(self, step: int) -> None:
        self._parts_since = step
        super()._begin(step)

    def _begin_epoch(self, epoch: int) -> None:
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)

    # Data

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        args = self.args
        multiple = args.train_batch_size * args.world_size if args.world_size > 1 else 1
        views = args.augmentation_views if self.augmentation is not None else 1
        seed = args.seed if args.data_seed is None else args.data_seed
        rows: Any = self.train_dataset
        self._sampler = EpochSampler(len(rows), multiple, seed, views)
        return self._sampler

    def cache_features(self, progress: bool | None = None) -> FeatureCache:
        """
        Build or complete the feature cache. `train()` calls this if `args.cache_features` is set.

        Args:
            progress (`bool`, *optional*): whether to show a progress bar. Defaults to the setting in `args`.

        Returns:
            [`FeatureCache`]: the cache of the training dataset.

        Raises:
            ValueError: if `train_dataset` or `args.cache_features` is not set.
            OSError: see [`FeatureCache.build`].
        """
        args, folder = self.args, self.args.cache_features
        if self._rows is None or folder is None:
            raise ValueError("The feature cache needs train_dataset and args.cache_features; set both.")
        model = self.accelerator.unwrap_model(self.model).eval()
        return FeatureCache.build(
            model,
            self.image_processor,
            self._rows,
            folder,
            dtype=args.cache_dtype,
            augmentation=self.augmentation,
            num_views=args.augmentation_views or 1,
            mask_options=self.mask_options,
            batch_size=args.per_device_train_batch_size,
            num_workers=args.dataloader_num_workers,
            autocast=self.compute_loss_context_manager,
            precision="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
            progress=not args.disable_tqdm if progress is None else progress,
        )

    # Training, saving and resuming

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Train the adapters.

        The run has an id and a record, `training_run.json`, in the output folder and in every checkpoint. The output
        folder is locked during training.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): path of a checkpoint to resume from. `True` resumes
                from the last complete checkpoint of the run in the output folder, or starts from the beginning if
                there is none.
            trial, ignore_keys_for_eval: see `Trainer.train`.

        Returns:
            `TrainOutput`: number of steps, training loss and metrics of the run.

        Raises:
            OSError: if the checkpoint does not exist or is incomplete, if the output folder contains another run or
                is used by another training, or if the feature cache cannot be built.
            ValueError: if there is no training dataset, if the checkpoint does not fit the model, if the settings or
                the data are not those of the checkpoint, or if the metric for the best model is undefined.
            RuntimeError: if the loss is not finite, see [`compute_loss`].
        """
        if self._rows is None:
            raise ValueError("train_dataset is None; expected a dataset to train on.")
        if self.args.metric_for_best_model is not None and self.eval_dataset is not None:
            check_selection_metric(self.args.metric_for_best_model, self._eval_sets(self.eval_dataset), self._collator)

        def train(checkpoint: str | None) -> TrainOutput:
            self.prepare_model()
            if self.args.cache_features is not None:
                self.train_dataset = CachedRows(rows, self.cache_features())
            self._parts = {}
            if self._average is not None:
                self._average.reset()
            return super(AdapterTrainer, self).train(checkpoint, trial, ignore_keys_for_eval)

        rows = self._rows
        return self.train_recorded(resume_from_checkpoint, train)

    def evaluate(
        self,
        eval_dataset: "Dataset | dict[str, Dataset] | None" = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Evaluate the model. With several processes, each image is still evaluated once.

        Args:
            eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*): one or more datasets to
                evaluate on. Defaults to those of the trainer.
            ignore_keys (`list[str]`, *optional*): not used.
            metric_key_prefix (`str`, defaults to `"eval"`): prefix of the metric names.

        Returns:
            `dict[str, float]`: `eval_<metric>`, averaged over the datasets for which the metric is defined. With
            several datasets also `eval_<name>_<metric>` for each. `self.results` contains the results per category.

        Raises:
            ValueError: if there is no dataset to evaluate on.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError("eval_dataset is None; expected one or more datasets to evaluate on.")
        sets = self._eval_sets(eval_dataset)
        start, count = time.perf_counter(), 0
        logs: dict[str, float] = {}
        results: dict[str, dict[str, Any]] = {}
        for name, dataset in sets.items():
            with self.compute_loss_context_manager():
                progress = (name or True) if not self.args.disable_tqdm else False
                results[name] = self.evaluate_dataset(dataset, progress)
            count += len(dataset)
            if len(sets) > 1:
                logs.update({f"{metric_key_prefix}_{name}_{m}": results[name]["mean"][m] for m in METRICS})
        for metric in METRICS:
            values = [result["mean"][metric] for result in results.values()]
            defined = [value for value in values if not math.isnan(value)]
            logs[f"{metric_key_prefix}_{metric}"] = sum(defined) / len(defined) if defined else math.nan
        self.results = results
        seconds = time.perf_counter() - start
        logs[f"{metric_key_prefix}_runtime"] = round(seconds, 3)
        logs[f"{metric_key_prefix}_samples_per_second"] = round(count / seconds, 3)
        self.log(dict(logs))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save a complete checkpoint, see [`save_checkpoint`]. Checkpoints during training contain the adapters only.

        Args:
            output_dir (`str`, *optional*): folder of the checkpoint. Defaults to `args.output_dir`.

        Raises:
            OSError: if the checkpoint cannot be written.
        """
        if self.args.should_save:
            self._save(output_dir, adapters_only=_internal_call)


__all__ = ["LOSS_PARTS", "AdapterTrainer"]
