"""Training of the adapters on transformers' Trainer."""

import difflib
import inspect
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .backbone_vip2clip import WEIGHTS_NAME, backbone_checksum
from .configuration_vip2clip import ViP2ClipConfig
from .data.augmentation import AUGMENTATIONS, Augmentation
from .data.collator import ViP2ClipCollator, count_masks
from .data.feature_cache import CACHE_DTYPES, FeatureCache
from .data.training_rows import EpochSampler, TrainingRows
from .evaluation.evaluator import evaluate_model
from .evaluation.metrics import METRICS
from .hub import save_checkpoint
from .image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from .modeling_vip2clip import ViP2ClipForAnomalyDetection


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)
# Rate of the fine-grained perception as a share of the other rate, in the released code.
PERCEPTION_SHARE = 0.01
STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.pt"
# Of the configuration: what may differ between a model and the checkpoint it goes on from.
_FREE_FIELDS = {
    "adapters_only", "backbone_checksum", "backbone_dtype", "backbone_id", "backbone_revision", "clip_config",
    "image_threshold", "pixel_threshold", "training_sets",
}  # fmt: skip
LOSS_PARTS = ("image", "focal", "dice_anomalous", "dice_normal")


@dataclass
class ViP2ClipTrainingArguments(TrainingArguments):
    """
    transformers' arguments with the authors' recipe as defaults: Adam without weight decay or clipping, constant
    rates of 1e-3 (prompts and image-conditioned adapter) and 1e-5 (fine-grained perception), batches of 8, 10 epochs,
    seed 111. New are `perception_learning_rate`, the feature cache and the augmentation.
    """

    output_dir: str = field(default="outputs", metadata={"help": "Where the trained model and its figures go."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Rate of prompts and image-conditioned adapter."})
    perception_learning_rate: float | None = field(
        default=None, metadata={"help": "Rate of the fine-grained perception (default: learning_rate x 0.01)."}
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Images per step and device."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Images per step and device."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the training data."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "How the learning rates change."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 for none."})
    seed: int = field(default=111, metadata={"help": "Of the adapters' initial weights and the order of the data."})
    cache_features: str | None = field(
        default=None,
        metadata={
            "help": "Folder to keep the backbone's embeddings in: it then sees every image once and not in every "
            "epoch. 8.4 MB an image at ViT-L/14 and 518 pixels."
        },
    )
    cache_dtype: str = field(default="float16", metadata={"help": "Precision of the cache: float16 or float32."})
    augmentation: list[str] | None = field(
        default=None, metadata={"help": f"Changed images: any of {', '.join(AUGMENTATIONS)}."}
    )
    augmentation_views: int | None = field(
        default=None,
        metadata={
            "help": "Number of views of every image that the epochs go through in turn, the first of them the image "
            "as it is (default: another one every epoch). Needed with cache_features, which stores them all."
        },
    )
    save_strategy: str = field(default="epoch", metadata={"help": "When to save checkpoints (adapters, 17 MB)."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, the best one besides."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss."})
    # A loss that is not finite ends the training; filtering would hide it.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave it off."})
    report_to: str = field(default="none", metadata={"help": "Experiment trackers."})
    # Pinning without an accelerator does nothing but warn.
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin memory for faster copies to the GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the columns it needs."})

    def __post_init__(self):
        if self.perception_learning_rate is None:
            self.perception_learning_rate = self.learning_rate * PERCEPTION_SHARE
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "pixel_auroc"
        super().__post_init__()
        if self.optim not in ("adamw_torch", "adamw_torch_fused"):  # the library's defaults
            raise ValueError(f"optim is {self.optim.value}; the adapters are trained with Adam, leave it out.")
        if self.label_smoothing_factor or self.remove_unused_columns:
            raise ValueError("label_smoothing_factor and remove_unused_columns have to be left out.")
        if self.cache_dtype not in CACHE_DTYPES:
            raise ValueError(f"cache_dtype is {self.cache_dtype!r}; expected {' or '.join(CACHE_DTYPES)}.")
        if self.augmentation is not None:
            Augmentation(self.augmentation)
            if self.cache_features is not None and (self.augmentation_views or 0) < 2:
                raise ValueError(
                    "With cache_features every view of an image is stored: say how many with augmentation_views, at "
                    "least 2, or leave out one of cache_features and augmentation."
                )
        elif self.augmentation_views is not None:
            raise ValueError("augmentation_views needs an augmentation.")
        if self.metric_for_best_model is not None and self.load_best_model_at_end:
            self._check_metric(self.metric_for_best_model.removeprefix("eval_"))
        # transformers would spread every batch over all GPUs of one process, where images per step and the weighting
        # of the losses would be others.
        if self.n_gpu > 1:
            logger.warning("One GPU is used; accelerate launch uses them all.")
            self._n_gpu = 1

    @staticmethod
    def _check_metric(metric: str):
        if not metric.endswith(METRICS):
            nearest = difflib.get_close_matches(metric, METRICS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(
                f"metric_for_best_model is {metric!r}; expected {', '.join(METRICS)}, or one of these after the name "
                f"of a data set and an underscore{hint}"
            )


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
            callbacks=[_SetEpoch(self), *(callbacks or [])],
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed are neither supported nor needed: the adapters have 4 million weights."
            )
        for callback in list(self.callback_handler.callbacks):
            if type(callback) is ProgressCallback:
                self.remove_callback(callback)
                self.add_callback(_LossProgress(self))
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
            self.train_dataset = TrainingRows(self._rows, self.augmentation, self.cache_features())
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
        if adapters_only and self._checksum is None:
            # CLIP does not change; reading 1.7 GB again for every checkpoint would be a waste.
            self._checksum = backbone_checksum(model.clip.state_dict(), model.clip.dtype)
        save_checkpoint(
            model,
            self.image_processor,
            self.args.output_dir if output_dir is None else output_dir,
            adapters_only=adapters_only,
            backbone_checksum=self._checksum,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        self._load_adapters(resume_from_checkpoint)

    def _load_best_model(self):
        logger.info(f"The best model is that of {self.state.best_model_checkpoint} ({self.state.best_metric:.4f}).")
        self._load_adapters(self.state.best_model_checkpoint)

    def _load_adapters(self, folder: str):
        model = self.accelerator.unwrap_model(self.model)
        config = ViP2ClipConfig.from_pretrained(folder)
        if self._checksum is None:
            self._checksum = backbone_checksum(model.clip.state_dict(), model.clip.dtype)
        if config.backbone_checksum not in (None, self._checksum):
            raise ValueError(f"{folder} was trained on another CLIP backbone than this one; use the same --clip.")
        changed = [
            name
            for name in inspect.get_annotations(ViP2ClipConfig)
            if name not in _FREE_FIELDS and getattr(config, name) != getattr(model.config, name)
        ]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{folder} was trained with {name} {getattr(config, name)!r}, this model has "
                f"{getattr(model.config, name)!r}; go on with the settings it was begun with."
            )
        weights = load_file(Path(folder, WEIGHTS_NAME))
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("clip.")}
        expected = model.adapter_state_dict()
        different = sorted(set(weights) ^ set(expected)) or [
            name for name, tensor in weights.items() if tensor.shape != expected[name].shape
        ]
        if different:
            raise ValueError(
                f"The adapters in {folder} are of another model: {', '.join(different[:3])} do not fit; go on with "
                "the settings they were begun with."
            )
        model.load_state_dict(weights, strict=False)

    def floating_point_ops(self, inputs) -> int:
        return 0  # the library's estimate counts tokens

    # Publishing is done once, with the complete folder; see vip2clip_hf.hub.

    def init_hf_repo(self, token: str | None = None, *args, **kwargs):
        pass

    def _push_from_checkpoint(self, checkpoint_folder: str):
        pass


def parameter_groups(
    model: ViP2ClipForAnomalyDetection, learning_rate: float, perception_learning_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: prompts and image-conditioned adapter, and the fine-grained perception where there is
    one."""
    perception = [p for p in model.fine_grained_perception.parameters() if p.requires_grad]
    is_perception = {id(parameter) for parameter in perception}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in is_perception]
    groups = [{"params": others, "lr": learning_rate}, {"params": perception, "lr": perception_learning_rate}]
    return [group for group in groups if group["params"]]


def check_training_data(dataset: "Dataset", augmentation: Augmentation | None = None) -> bool:
    """
    Whether there are masks to train on.

    Raises:
        ValueError: images without labels, or no anomalous ones. Says what can be trained and how.
    """
    if not len(dataset):
        raise ValueError("The training data have no images; expected normal and anomalous ones.")
    labels = dataset["label"]
    unlabelled = sum(label is None for label in labels)
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(labels)} training images have no label; expected normal and anomalous ones, for "
            "instance in the folders normal/ and anomalous/ (docs/data.md)."
        )
    pasted = augmentation is not None and "cut_paste" in augmentation.kinds
    if not any(labels):
        if not pasted:
            raise ValueError(
                f"All {len(labels)} training images are normal; without defects nothing can be learned. Add anomalous "
                "images, or let defects be made up: --augmentation cut_paste (docs/training.md)."
            )
        return True
    if all(labels):
        logger.warning("All training images are anomalous: the image score has nothing to be told apart from.")
    masks = count_masks(dataset)
    if not masks and not pasted:
        logger.warning(
            "No anomalous image has a mask: only the image loss is trained, and maps will be poor. Add masks "
            "(docs/data.md), or --augmentation cut_paste, which makes up defects with masks."
        )
    return masks > 0 or pasted


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether training can go on from a checkpoint: it was written to its end, and with its optimizer."""
    files = (WEIGHTS_NAME, "config.json", OPTIMIZER_FILE)
    return all(Path(folder, name).is_file() for name in files) and _has_state(folder)


def _has_state(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint was written to its end: its state is written last."""
    try:
        TrainerState.load_from_json(str(Path(folder, STATE_FILE)))
    except (OSError, ValueError, TypeError):
        return False
    return True


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The last checkpoint in an output folder that was written to its end."""
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rsplit("-", 1)[1]
        if number.isdigit() and is_complete_checkpoint(path):
            found.append((int(number), str(path)))
    return max(found)[1] if found else None


def remove_incomplete_checkpoints(output_dir: str | os.PathLike) -> list[str]:
    """Remove what an interrupted save has left, so that it neither counts nor takes room. Whole checkpoints without
    their optimizer (save_only_model), and folders of something else, are left alone."""
    removed = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        ours = path.name.rsplit("-", 1)[1].isdigit() and (path / "config.json").is_file()
        if ours and not _has_state(path):
            shutil.rmtree(path)
            removed.append(path.name)
    return removed


class _SetEpoch(TrainerCallback):
    """Tells the sampler which epoch it is; what the Trainer sets does not reach it on every path."""

    def __init__(self, trainer: ViP2ClipTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer._sampler is not None:
            self.trainer._sampler.set_epoch(math.floor((state.epoch or 0) + 1e-6))

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._parts_since = state.global_step
        if state.is_world_process_zero:
            for name in remove_incomplete_checkpoints(args.output_dir):
                logger.warning(f"{name} was not written to its end and is removed.")


class _LossProgress(ProgressCallback):
    """The library's progress bar, with the loss."""

    def __init__(self, trainer: ViP2ClipTrainer):
        super().__init__()
        self.trainer, self._shown_at = trainer, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        # Reading the loss waits for the device; once a second is enough.
        if state.is_world_process_zero and time.monotonic() - self._shown_at > 1:
            self.training_bar.set_postfix(loss=f"{float(self.trainer._last_loss):.3f}", refresh=False)
            self._shown_at = time.monotonic()


__all__ = [
    "ViP2ClipTrainer",
    "ViP2ClipTrainingArguments",
    "check_training_data",
    "is_complete_checkpoint",
    "last_complete_checkpoint",
]
