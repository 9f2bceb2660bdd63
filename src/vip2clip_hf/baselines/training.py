"""Train the baselines that have trained weights, with the same trainer, data and feature cache as ViP²-CLIP."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..evaluation.evaluator import evaluate_detector
from ..training.adapter_trainer import AdapterTrainer
from ..training.arguments import ModelArguments, ViP2ClipTrainingArguments
from ..training.run import TrainingKind, backbone_of, checkpoint_of
from ..utils.settings import read_settings
from .detector import BaselineDetector
from .detector_loading import check_method
from .methods import METHODS, create_model, find_method
from .saving import update_card, write_baseline
from .trainable import TrainableBaselineModel


if TYPE_CHECKING:
    from datasets import Dataset

    from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor


class BaselineTrainer(AdapterTrainer):
    """
    Train a [`TrainableBaselineModel`]: the loss and the optimizer of the method, and otherwise everything as
    [`ViP2ClipTrainer`].

    The defaults of [`ViP2ClipTrainingArguments`] are those of ViP²-CLIP. The published recipes of the methods are in
    `vip2clip train --method`.

    Args:
        model ([`TrainableBaselineModel`]): model to train.
        args ([`ViP2ClipTrainingArguments`]): training arguments. `perception_learning_rate` has no effect.
        image_processor, train_dataset, eval_dataset, kwargs: see [`ViP2ClipTrainer`]. The category of an image is the
            class name in its prompts.

    Raises:
        ValueError: as [`ViP2ClipTrainer`], if features would be cached for a method whose features change, or if the
            method learns from masks only and there are none.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipImageProcessor, ViP2ClipTrainingArguments, load_folder
    >>> from vip2clip_hf.baselines import AprilGanForAnomalyDetection, BaselineTrainer

    >>> model = AprilGanForAnomalyDetection.from_clip("openai/clip-vit-large-patch14-336", image_size=518)
    >>> args = ViP2ClipTrainingArguments(output_dir="outputs", adam_beta1=0.5, num_train_epochs=3)
    >>> trainer = BaselineTrainer(model, args, ViP2ClipImageProcessor(size=518), load_folder("parts"))
    >>> trainer.train()
    ```
    """

    model: TrainableBaselineModel

    def __init__(
        self,
        model: TrainableBaselineModel,
        args: ViP2ClipTrainingArguments,
        image_processor: "ViP2ClipImageProcessor",
        train_dataset: "Dataset | None" = None,
        eval_dataset: "Dataset | dict[str, Dataset] | None" = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, TrainableBaselineModel):
            raise ValueError(
                f"The model is a {type(model).__name__}; expected a TrainableBaselineModel, which is not wrapped."
            )
        if args.cache_features is not None and not model.caches_features:
            raise ValueError(
                f"cache_features is set, but {model.method_name} has prompts inside the vision tower, so its features "
                "change in every step; omit cache_features."
            )
        names = model.uses_class_names
        super().__init__(model, args, image_processor, train_dataset, eval_dataset, class_names=names, **kwargs)
        if not self._collator.pixel_labels and "image" not in model.loss_weights:
            raise ValueError(
                f"No anomalous image has a mask, and {model.method_name} learns from masks only; expected masks. Add "
                "them (see docs/data.md), or create synthetic defects with masks: --augmentation cut_paste."
            )

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer of the method, with the arguments of the trainer."""
        if self.optimizer is None:
            args, trained = self.args, self.accelerator.unwrap_model(self.model if model is None else model)
            optimizer: Any = trained.optimizer_class
            self.optimizer = optimizer(
                trained.optimizer_groups(args.learning_rate),
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        return self.optimizer

    def loss_weights(self) -> Mapping[str, float]:
        """Return the weight of each part of the loss of the method."""
        return self.accelerator.unwrap_model(self.model).loss_weights

    def model_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Convert the categories of a batch to class names of the prompts."""
        names = inputs.get("class_name")
        if names is None:
            return inputs
        config = self.model.config
        return {**inputs, "class_name": [config.name_of_category(one) if one else config.class_name for one in names]}

    def evaluate_dataset(self, dataset: "Dataset", progress: bool | str) -> dict[str, Any]:
        """Evaluate the model on a dataset with [`evaluate_detector`]."""
        detector = BaselineDetector(self.accelerator.unwrap_model(self.model), self.image_processor)
        return evaluate_detector(
            detector,
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            mask_options=self.mask_options,
            num_workers=self.args.dataloader_num_workers,
            progress=progress,
        )

    def write(
        self,
        folder: str | os.PathLike,
        *,
        adapters_only: bool = False,
        backbone_checksum: str | None = None,
        run: dict[str, Any] | None = None,
    ) -> Path:
        """Write the model and its image processor to a folder, see [`write_baseline`]."""
        return write_baseline(
            self.accelerator.unwrap_model(self.model),
            self.image_processor,
            folder,
            adapters_only=adapters_only,
            backbone_checksum=backbone_checksum,
            run=run,
        )

    def write_card(self, run: dict[str, Any]) -> None:
        """Write the model card in the output folder again, see [`update_card`]."""
        update_card(self.accelerator.unwrap_model(self.model), self.args.output_dir, run)


def training_kind(key: str) -> TrainingKind:
    """
    Describe how a method is trained, for [`run_training`].

    Args:
        key (`str`): name of the method, one of `METHODS`.

    Returns:
        [`TrainingKind`]: how its model is built and trained.

    Raises:
        ValueError: if the method is unknown or has nothing to train.
    """
    method = find_method(key)
    if not method.trained:
        trained = ", ".join(["vip2clip", *(one.key for one in METHODS.values() if one.trained)])
        raise ValueError(f"method is {key!r}, which has nothing to train; expected {trained}.")

    def build(arguments: ModelArguments, seed: int) -> TrainableBaselineModel:
        _check_arguments(arguments)
        if arguments.model is not None:
            if arguments.model == "bundled":
                raise ValueError(
                    f"model is 'bundled', which is a checkpoint of ViP²-CLIP; expected one of {arguments.method}."
                )
            checkpoint = checkpoint_of(arguments)
            check_method(key, checkpoint)
            return method.model_class.from_pretrained(checkpoint)
        if arguments.clip == "random-tiny":
            raise ValueError(
                f"clip is 'random-tiny', which has no text tokenizer; {arguments.method} expects a CLIP with one, or "
                "'bundled'."
            )
        clip = arguments.clip if arguments.clip == "bundled" else backbone_of(arguments, seed)[0]
        settings: dict[str, Any] = {"image_size": arguments.image_size}
        if arguments.feature_layers is not None:
            settings["feature_layers"] = tuple(arguments.feature_layers)
        return create_model(key, clip, seed=seed, **{**settings, **read_settings(arguments.set or [])})

    return TrainingKind(build, BaselineTrainer)


def _check_arguments(arguments: ModelArguments) -> None:
    """Check that no argument is set that only ViP²-CLIP has."""
    defaults = ModelArguments()
    for name in ("variant", "top_k", "fgp_scaled"):
        value = getattr(arguments, name)
        if value != getattr(defaults, name):
            raise ValueError(
                f"{name} is {value!r}, but {arguments.method} has no such setting; omit it. Use --set NAME=VALUE for "
                "the settings of this method."
            )


__all__ = ["BaselineTrainer", "training_kind"]
