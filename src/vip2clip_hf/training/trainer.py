"""Train the adapters with transformers' Trainer."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging

from ..checkpoints.saving import write_checkpoint
from ..data.collator import ViP2ClipCollator
from ..evaluation.evaluator import evaluate_model
from ..evaluation.metrics import METRICS
from ..models.vip2clip.backbone_vip2clip import backbone_checksum
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from .arguments import ViP2ClipTrainingArguments
from .augmentation import Augmentation
from .callbacks import LogPrinter, LossProgress, TrainingHooks
from .checks import check_training_data
from .feature_cache import CachedRows, FeatureCache
from .optimization import parameter_groups
from .resuming import (
    is_complete_checkpoint,
    last_complete_checkpoint,
    load_adapters,
    remove_incomplete_checkpoints,
)
from .rows import EpochSampler, TrainingRows


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
LOSS_PARTS = ("image", "focal", "dice_anomalous", "dice_normal")


class ViP2ClipTrainer(Trainer):
    """
    Trains the adapters of a [`ViP2ClipForAnomalyDetection`]; its CLIP stays frozen.

    The loss of a step is that of all its images, wherever they are computed: gradient accumulation and several
    processes give the gradients of one large batch, also when images without a mask are spread unevenly. No image is
    repeated to fill up the last step.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model.
        args ([`ViP2ClipTrainingArguments`]):
            The arguments.
        image_processor ([`ViP2ClipImageProcessor`]):
            Its image processor.
        train_dataset (`datasets.Dataset`, *optional*):
            As `load_folder` and `load_benchmark` give it. A column `mask_threshold` is obeyed.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            Evaluated with [`evaluate_model`], by name when there are several.
        mask_threshold (`int` or `float`, *optional*):
            See [`ViP2ClipCollator`].
        callbacks (*optional*):
            As in `Trainer`.

    Raises:
        ValueError: an image processor that does not fit, images without labels, or data that teach nothing (says
            what can be trained and how).

    Example:

    ```python
    >>> from vip2clip_hf.trainer import ViP2ClipTrainer, ViP2ClipTrainingArguments

    >>> args = ViP2ClipTrainingArguments(output_dir="outputs", cache_features="cache")
    >>> trainer = ViP2ClipTrainer(model, args, image_processor, train_dataset=load_folder("parts"))
    >>> trainer.train()
    >>> trainer.save_model()
    ```
    """

    def __init__(
        self,
        model: ViP2ClipForAnomalyDetection,
        args: ViP2ClipTrainingArguments,
        image_processor: ViP2ClipImageProcessor,
        train_dataset: "Dataset | None" = None,
        eval_dataset: "Dataset | dict[str, Dataset] | None" = None,
        *,
        mask_threshold: int | float | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        check_image_processor(image_processor, model.config.image_size)
        self.image_processor, self.mask_threshold = image_processor, mask_threshold
        self.results: dict[str, dict[str, Any]] = {}
        self.augmentation = None
        if args.augmentation is not None:
            self.augmentation = Augmentation(args.augmentation, args.seed)
        self._rows = train_dataset
        pixel_labels = True
        if train_dataset is not None:
            pixel_labels = check_training_data(train_dataset, self.augmentation)
        super().__init__(
            model=model,
            args=args,
            data_collator=ViP2ClipCollator(image_processor, pixel_labels, mask_threshold),
            train_dataset=None if train_dataset is None else TrainingRows(train_dataset, self.augmentation),
            eval_dataset=eval_dataset,
            processing_class=image_processor,
            callbacks=[TrainingHooks(self._begin, self._begin_epoch), *(callbacks or [])],
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed are neither supported nor needed: the adapters have 4 million weights."
            )
        for callback in list(self.callback_handler.callbacks):
            if type(callback) is ProgressCallback:
                self.remove_callback(callback)
                self.add_callback(LossProgress(lambda: self._last_loss))
            elif type(callback) is PrinterCallback:
                self.remove_callback(callback)
                self.add_callback(LogPrinter())
        self._checksum: str | None = None
        self._parts: dict[str, torch.Tensor] = {}
        self._parts_since = 0
        self._last_loss = math.nan
        self._sampler: EpochSampler | None = None

    # Optimisation

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Adam with one rate for prompts and image-conditioned adapter, another for the fine-grained perception."""
        if self.optimizer is None:
            model = self.accelerator.unwrap_model(self.model if model is None else model)
            self.optimizer = torch.optim.Adam(
                parameter_groups(model, self.args.learning_rate, self.args.perception_learning_rate),
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Images, and images whose masks count, of a step: over all batches of an accumulation and all processes."""
        counts = torch.zeros(2)
        for batch in batch_samples:
            images = batch["num_images"]
            valid = batch.get("mask_label_valid")
            counts += torch.tensor([images, images if valid is None else int(valid.sum())])
        return self.accelerator.reduce(counts.to(device), reduction="sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        The share of this batch in the loss of the step: image loss over all images of the step, pixel losses over all
        with a valid mask.

        Raises:
            RuntimeError: it is not finite. Names the images, and the checkpoint that is left.
        """
        inputs = dict(inputs)
        ids, images = inputs.pop("image_ids", []), inputs.pop("num_images", None)
        outputs = model(**inputs)
        if num_items_in_batch is None or images is None:
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        valid = inputs.get("mask_label_valid")
        valid = images if valid is None else valid.sum()
        weights = {"image": images / num_items_in_batch[0]}
        parts = {}
        for name, part in outputs.loss_components.items():
            weight = weights.get(name, valid / num_items_in_batch[1].clamp_min(1))
            parts[name] = part * weight
        scale = self.model.config.local_loss_weight
        loss = sum(part if name == "image" else scale * part for name, part in parts.items())
        loss = loss + 0.0 * outputs.loss  # every parameter gets a gradient, on every process
        if not torch.isfinite(loss):
            left = last_complete_checkpoint(self.args.output_dir)
            raise RuntimeError(
                f"The loss is {outputs.loss.item()} at step {self.state.global_step + 1}; the images of the batch are "
                f"{ids}. Nothing is saved. "
                + (f"The last checkpoint is {left}." if left else "There is no checkpoint yet.")
                + " Try a lower learning rate, or full precision."
            )
        for name, part in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + part.detach()
        self._last_loss = outputs.loss.detach()
        # The Trainer divides by the batches of an accumulation, distributed training by the processes.
        loss = loss * (self.current_gradient_accumulation_steps * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs):
        """Adds the parts of the loss, means over the steps since the last time as the loss itself."""
        if "loss" in logs and self._parts:
            steps = max(1, self.state.global_step - self._parts_since)
            names = [name for name in LOSS_PARTS if name in self._parts]
            sums = torch.stack([self._parts[name] for name in names]) / steps
            sums = self.accelerator.reduce(sums, reduction="sum")
            # Behind the loss, in front of the rest.
            logs = {"loss": logs["loss"], **{f"loss_{n}": s.item() for n, s in zip(names, sums)}, **logs}
            self._parts, self._parts_since = {}, self.state.global_step
        super().log(logs, *args, **kwargs)

    def _begin(self, step: int):
        self._parts_since = step
        if self.is_world_process_zero():
            for name in remove_incomplete_checkpoints(self.args.output_dir):
                logger.warning(f"{name} was not written to its end and is removed.")

    def _begin_epoch(self, epoch: int):
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)

    # Data

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        args = self.args
        multiple = args.train_batch_size * args.world_size if args.world_size > 1 else 1
        views = args.augmentation_views if self.augmentation is not None else 1
        seed = args.seed if args.data_seed is None else args.data_seed
        self._sampler = EpochSampler(len(self.train_dataset), multiple, seed, views)
        return self._sampler

    def cache_features(self, progress: bool | None = None) -> FeatureCache:
        """
        The feature cache of the training data, made or completed. `train()` calls it when `args.cache_features` is
        set.

        Raises:
            OSError, ValueError: see [`FeatureCache.build`].
        """
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        model.eval()
        return FeatureCache.build(
            model,
            self.image_processor,
            self._rows,
            args.cache_features,
            dtype=args.cache_dtype,
            augmentation=self.augmentation,
            num_views=args.augmentation_views or 1,
            mask_threshold=self.mask_threshold,
            batch_size=args.per_device_train_batch_size,
            num_workers=args.dataloader_num_workers,
            autocast=self.compute_loss_context_manager,
            precision="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
            progress=not args.disable_tqdm if progress is None else progress,
        )

    # Training, saving, going on

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Train.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint; or `True` for the last complete one in the output folder, from the beginning where there
                is none yet.
            kwargs:
                As in `Trainer`.

        Raises:
            OSError: the checkpoint is not there or not complete.
            ValueError: it is of another model.
            RuntimeError: the loss is not finite, see [`compute_loss`].
        """
        if self._rows is None:
            raise ValueError("There is nothing to train on: give train_dataset.")
        if self.model.config.calibration is not None:
            logger.warning("The calibration was that of the weights of before, and is dropped; calibrate again.")
            self.model.config.calibration = None
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            logger.warning(
                "No complete checkpoint yet; training starts from the beginning."
                if resume_from_checkpoint is None
                else f"Going on from {resume_from_checkpoint}."
            )
        elif resume_from_checkpoint and not is_complete_checkpoint(resume_from_checkpoint):
            last = last_complete_checkpoint(Path(resume_from_checkpoint).parent)
            raise OSError(
                f"{str(resume_from_checkpoint)!r} is no complete checkpoint of a training"
                + (f"; the last complete one beside it is {last}." if last else ".")
            )
        if self.args.cache_features is not None:
            self.train_dataset = CachedRows(self._rows, self.cache_features())
        self._parts = {}
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        The metrics of [`evaluate_model`] on every data set, each image once whatever the number of processes.

        Returns:
            `dict`: `eval_<metric>`, the mean over the data sets (where it is defined), and with several data sets
            `eval_<name>_<metric>` for each. Results by category are in `self.results`.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError("There is nothing to evaluate: give eval_dataset.")
        sets = dict(eval_dataset) if isinstance(eval_dataset, Mapping) else {"": eval_dataset}
        start, logs, count = time.perf_counter(), {}, 0
        results = {}
        for name, dataset in sets.items():
            with self.compute_loss_context_manager():
                results[name] = evaluate_model(
                    self.accelerator.unwrap_model(self.model),
                    self.image_processor,
                    dataset,
                    batch_size=self.args.per_device_eval_batch_size,
                    mask_threshold=self.mask_threshold,
                    num_workers=self.args.dataloader_num_workers,
                    progress=(name or True) if not self.args.disable_tqdm else False,
                )
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """
        Write a complete folder, see [`vip2clip_hf.hub.save_checkpoint`]. The checkpoints on the way hold adapters
        only.
        """
        if self.args.should_save:
            self._save(output_dir, adapters_only=_internal_call)

    def _save(self, output_dir: str | None = None, state_dict=None, adapters_only: bool = False):
        model = self.accelerator.unwrap_model(self.model)
        write_checkpoint(
            model,
            self.image_processor,
            self.args.output_dir if output_dir is None else output_dir,
            adapters_only=adapters_only,
            backbone_checksum=self._backbone_checksum(model) if adapters_only else None,
        )

    def _backbone_checksum(self, model: ViP2ClipForAnomalyDetection) -> str:
        """CLIP does not change; reading 1.7 GB again for every checkpoint would be a waste."""
        if self._checksum is None:
            self._checksum = backbone_checksum(model.clip.state_dict(), model.clip.dtype)
        return self._checksum

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        self._load_adapters(resume_from_checkpoint)

    def _load_best_model(self):
        logger.info(f"The best model is that of {self.state.best_model_checkpoint} ({self.state.best_metric:.4f}).")
        self._load_adapters(self.state.best_model_checkpoint)

    def _load_adapters(self, folder: str):
        model = self.accelerator.unwrap_model(self.model)
        load_adapters(model, folder, self._backbone_checksum(model))

    def floating_point_ops(self, inputs) -> int:
        return 0  # the library's estimate counts tokens

    # Publishing is done once, with the complete folder; see vip2clip_hf.hub.

    def init_hf_repo(self, token: str | None = None, *args, **kwargs):
        pass

    def _push_from_checkpoint(self, checkpoint_folder: str):
        pass


__all__ = ["ViP2ClipTrainer"]
