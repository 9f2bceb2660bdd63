"""Arguments of a training: recipe, data, backbone."""

import difflib
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..evaluation.metrics import METRICS
from .augmentation import AUGMENTATIONS, Augmentation
from .feature_cache import CACHE_DTYPES


logger = logging.get_logger(__name__)
# Rate of the fine-grained perception as a share of the other rate, in the released code.
PERCEPTION_SHARE = 0.01


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


@dataclass
class ModelArguments:
    """The backbone, and the fields of [`ViP2ClipConfig`] that a training chooses."""

    clip: str | None = field(
        default=None,
        metadata={
            "help": "Frozen backbone: folder or Hub id of a CLIP checkpoint, such as "
            "openai/clip-vit-large-patch14-336. 'random-tiny' builds a small one with random weights to try the "
            "command out; its results are meaningless."
        },
    )
    variant: str = field(default="paper", metadata={"help": "'paper' or 'release', see docs/paper-and-release.md."})
    image_size: int = field(default=518, metadata={"help": "Side of the input in pixels."})
    feature_layers: list[int] = field(
        default_factory=lambda: [6, 12, 18, 24], metadata={"help": "1-based vision blocks to align."}
    )
    top_k: int = field(default=50, metadata={"help": "Number of top patches per layer used for the image score."})


@dataclass
class DataArguments:
    """What to train and evaluate on, and what to write."""

    train_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Datasets to train on, one or several [NAME=]ROOT: a benchmark by its name "
            "(mvtec=path/to/MVTec), or a folder, table or Hub id with labels, see docs/data.md."
        },
    )
    eval_data: list[str] | None = field(
        default=None,
        metadata={"help": "Datasets to evaluate on, in the same form; during training with --eval_strategy."},
    )
    train_split: str = field(default="test", metadata={"help": "Split to train on; the paper's is test."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    adapters_only: bool = field(
        default=False, metadata={"help": "Leave the backbone out of the checkpoint; it is fetched on loading."}
    )
    json: bool = field(default=False, metadata={"help": "Print the results as JSON."})


__all__ = ["DataArguments", "ModelArguments", "ViP2ClipTrainingArguments"]
