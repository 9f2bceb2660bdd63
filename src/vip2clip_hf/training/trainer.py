"""Train the adapters of ViP²-CLIP."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from ..checkpoints.weights import check_unwrapped
from ..evaluation.model_evaluation import evaluate_model
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from .adapter_trainer import AdapterTrainer
from .optimization import parameter_groups


if TYPE_CHECKING:
    from datasets import Dataset

    from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
    from .arguments import ViP2ClipTrainingArguments

logger = logging.get_logger(__name__)


class ViP2ClipTrainer(AdapterTrainer):
    """
    Train the adapters of a [`ViP2ClipForAnomalyDetection`]. The CLIP backbone stays frozen.

    The loss of a step is computed over all images of the step. Gradient accumulation and several processes therefore
    give the same gradients as one large batch, also if images without a mask are distributed unevenly. No image is
    repeated to fill the last step.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): model to train.
        args ([`ViP2ClipTrainingArguments`]): training arguments.
        image_processor ([`ViP2ClipImageProcessor`]): image processor of the model.
        train_dataset (`datasets.Dataset`, *optional*):
            Dataset to train on, returned by [`load_folder`] or [`load_benchmark`]. If it has columns such as
            `mask_threshold`, each mask uses the options of its row, see [`ViP2ClipCollator`].
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            One or more datasets to evaluate on with [`evaluate_model`].
        mask_threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous, see [`ViP2ClipCollator`].
        mask_options ([`MaskOptions`], *optional*): how to read masks, in training and evaluation.
        training_sets (`list[dict]`, *optional*):
            Entries of [`describe_training_set`] for `train_dataset`, added to `model.provenance.training_sets` by
            `train`. By default, one entry with the name of the folder that the dataset was loaded from.
        callbacks (`list[TrainerCallback]`, *optional*):
            Additional callbacks.

    Raises:
        ValueError: if the image processor does not fit the model, if an image has no label, if there is nothing to
            learn from `train_dataset`, if trained weights are in half precision, or if FSDP or DeepSpeed is enabled.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipTrainer, ViP2ClipTrainingArguments, load_folder

    >>> args = ViP2ClipTrainingArguments(output_dir="outputs", cache_features="cache")
    >>> trainer = ViP2ClipTrainer(model, args, image_processor, train_dataset=load_folder("parts"))
    >>> trainer.train()
    >>> trainer.save_model()
    ```
    """

    model: ViP2ClipForAnomalyDetection

    def __init__(
        self,
        model: ViP2ClipForAnomalyDetection,
        args: "ViP2ClipTrainingArguments",
        image_processor: "ViP2ClipImageProcessor",
        train_dataset: "Dataset | None" = None,
        eval_dataset: "Dataset | dict[str, Dataset] | None" = None,
        **kwargs: Any,
    ) -> None:
        check_unwrapped(model, "trained with ViP2ClipTrainer")
        super().__init__(model, args, image_processor, train_dataset, eval_dataset, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create an Adam optimizer with a separate learning rate for the fine-grained perception."""
        if self.optimizer is None:
            args, perception_rate = self.args, self.args.perception_learning_rate
            if perception_rate is None:
                raise ValueError("perception_learning_rate is None; expected a number.")
            adapters = self.accelerator.unwrap_model(self.model if model is None else model)
            self.optimizer = torch.optim.Adam(
                parameter_groups(adapters, args.learning_rate, perception_rate),
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        return self.optimizer

    def loss_weights(self) -> Mapping[str, float]:
        """Return the weight of each part of the loss (eq. 10)."""
        local = self.model.config.local_loss_weight
        return {"image": 1.0, "focal": local, "dice_anomalous": local, "dice_normal": local}

    def describe_rates(self) -> str:
        """Describe the learning rates for the model card."""
        args = self.args
        return (
            f"learning rates {args.learning_rate:g} (prompts, image-conditioned adapter) and "
            f"{args.perception_learning_rate:g} (fine-grained perception)"
        )

    def prepare_model(self) -> None:
        """Remove the calibration and the references, because they belong to the weights before training."""
        if self.model.decision.calibration is not None:
            logger.warning("Training changes the weights, so the calibration is removed. Calibrate again afterwards.")
            self.model.decision = self.image_processor.decision = self.model.decision.without_calibration()
        if self.model.references is not None:
            logger.warning(
                "Training changes the weights, so the references are removed. Build them again afterwards, with "
                "ReferenceBank.from_images."
            )
            self.model.references = None

    def evaluate_dataset(self, dataset: "Dataset", progress: bool | str) -> dict[str, Any]:
        """Evaluate the model on a dataset with [`evaluate_model`]."""
        return evaluate_model(
            self.accelerator.unwrap_model(self.model),
            self.image_processor,
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            mask_options=self.mask_options,
            num_workers=self.args.dataloader_num_workers,
            progress=progress,
        )


__all__ = ["ViP2ClipTrainer"]
