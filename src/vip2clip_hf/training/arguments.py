"""Arguments of a training run: recipe, model and data."""

import difflib
import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ..evaluation.metrics import METRICS
from ..models.vip2clip.mask_options_vip2clip import MASK_CHANNELS, MASK_ORIENTATIONS
from .augmentation import AUGMENTATIONS, Augmentation
from .feature_cache import CACHE_DTYPES


logger = logging.get_logger(__name__)
# Learning rate of the fine-grained perception relative to `learning_rate`, as in the released code.
PERCEPTION_SHARE = 0.01


@dataclass
class ViP2ClipTrainingArguments(TrainingArguments):
    """
    Arguments of a [`ViP2ClipTrainer`], with the authors' recipe as defaults.

    The recipe is Adam without weight decay or gradient clipping, constant learning rates of 1e-3 (prompts and
    image-conditioned adapter) and 1e-5 (fine-grained perception), batches of 8 images, 10 epochs and seed 111. All
    arguments of `TrainingArguments` are accepted except `label_smoothing_factor`, `optim` and `remove_unused_columns`.

    Args:
        output_dir (`str`, defaults to `"outputs"`):
            Output directory for checkpoints, the trained model and its results.
        learning_rate (`float`, defaults to 1e-3):
            Learning rate of the prompts and the image-conditioned adapter.
        perception_learning_rate (`float`, *optional*):
            Learning rate of the fine-grained perception. Defaults to `learning_rate` x 0.01.
        cache_features (`str`, *optional*):
            Folder of the feature cache. If set, the backbone processes each image once instead of once per epoch.
        cache_dtype (`str`, defaults to `"float16"`):
            Precision of the cached patch embeddings, `"float16"` or `"float32"`.
        augmentation (`list[str]`, *optional*):
            Augmentations to apply, see [`Augmentation`].
        augmentation_views (`int`, *optional*):
            Number of views per image. The epochs cycle through the views; the first view is the original image. By
            default, every epoch uses a new view. Required with `cache_features`, at least 2: all views are cached.
        average_weights_from (`float`, *optional*):
            Number of epochs after which the weights of the adapters are averaged over all steps, up to the end of
            training. With 1, the average begins with the second epoch. The final model has the averaged weights. By
            default, it has those of the last step.
        overwrite_output_dir (`bool`, defaults to `False`):
            Whether to delete the checkpoints and the model of an earlier training run in `output_dir`. Other files
            are kept. Without it, a new training in the folder of another run is an error.
        allow_changed_recipe (`bool`, defaults to `False`):
            Whether to resume with settings or training data that are not those of the checkpoint. Without it, a
            difference is an error that lists all of them.

    Raises:
        ValueError: if an argument is unknown, out of range or not supported, or if `augmentation_views` does not fit
            `augmentation` and `cache_features`.
    """

    output_dir: str = field(
        default="outputs",
        metadata={"help": "The output directory for checkpoints, the trained model and its results."},
    )
    learning_rate: float = field(
        default=1e-3, metadata={"help": "The learning rate of the prompts and the image-conditioned adapter."}
    )
    perception_learning_rate: float | None = field(
        default=None,
        metadata={"help": "The learning rate of the fine-grained perception. Defaults to learning_rate x 0.01."},
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "The batch size per device for training."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "The batch size per device for evaluation."})
    num_train_epochs: float = field(default=10, metadata={"help": "Total number of training epochs to perform."})
    lr_scheduler_type: str = field(
        default="constant",
        metadata={"help": "The learning rate scheduler type to use. See `SchedulerType` for all possible values."},
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Maximum gradient norm for gradient clipping. Set to 0 to disable."}
    )
    seed: int = field(
        default=111,
        metadata={"help": "Random seed of the initial adapter weights, the order of the data and the augmentation."},
    )
    cache_features: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the feature cache. If set, the backbone processes each image once instead of once per "
            "epoch. Needs 8.4 MB per image with ViT-L/14 at 518 pixels."
        },
    )
    cache_dtype: str = field(
        default="float16", metadata={"help": "Precision of the feature cache. Options: 'float16', 'float32'."}
    )
    augmentation: list[str] | None = field(
        default=None,
        metadata={"help": f"Augmentations to apply. Options: {', '.join(map(repr, AUGMENTATIONS))}."},
    )
    augmentation_views: int | None = field(
        default=None,
        metadata={
            "help": "Number of views per image. The epochs cycle through the views; the first view is the original "
            "image. By default, every epoch uses a new view. Required with cache_features, which stores all views."
        },
    )
    average_weights_from: float | None = field(
        default=None,
        metadata={
            "help": "Average the weights of the adapters over all steps after this number of epochs, and use the "
            "average as the final weights: 1 averages from the second epoch on. By default, the weights of the last "
            "step are used."
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Delete the checkpoints and the model of an earlier training run in output_dir. Other files are "
            "kept."
        },
    )
    allow_changed_recipe: bool = field(
        default=False,
        metadata={"help": "Resume also if the settings or the training data are not those of the checkpoint."},
    )
    save_strategy: str = field(
        default="epoch",
        metadata={
            "help": "The checkpoint save strategy to adopt during training. Options: 'no', 'epoch', 'steps', 'best'. "
            "Checkpoints contain the adapters (17 MB) without the backbone."
        },
    )
    save_total_limit: int | None = field(
        default=2,
        metadata={
            "help": "Maximum number of checkpoints to keep. The most recent one is always kept, and the best one with "
            "load_best_model_at_end."
        },
    )
    logging_strategy: str = field(
        default="epoch",
        metadata={"help": "The logging strategy to adopt during training. Options: 'no', 'epoch', 'steps'."},
    )
    # The trainer stops if the loss is not finite. The filter would hide the value.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Filter out NaN and infinite losses when logging. Keep the default."}
    )
    report_to: str = field(
        default="none",
        metadata={
            "help": "The integrations to report the results and logs to. Use 'all' for all installed integrations, "
            "'none' for no integrations."
        },
    )
    # Without an accelerator, pinning memory only causes a warning.
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available,
        metadata={"help": "Pin memory in data loaders, for faster copies to the GPU. Defaults to True with a GPU."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must be False, because the collator selects the columns."}
    )

    def __post_init__(self) -> None:
        if self.perception_learning_rate is None:
            self.perception_learning_rate = self.learning_rate * PERCEPTION_SHARE
        plateau = self.lr_scheduler_type == "reduce_lr_on_plateau"
        if (self.load_best_model_at_end or plateau) and self.metric_for_best_model is None:
            self.metric_for_best_model = "pixel_auroc"
        super().__post_init__()
        if self.optim not in ("adamw_torch", "adamw_torch_fused"):  # the defaults of transformers
            raise ValueError(
                f"optim is {OptimizerNames(self.optim).value!r}; expected the default, because the adapters are "
                "trained with Adam. Omit optim."
            )
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor is {self.label_smoothing_factor}; expected 0. Omit it.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns is True; expected False. Omit it.")
        if self.cache_dtype not in CACHE_DTYPES:
            raise ValueError(f"cache_dtype is {self.cache_dtype!r}; expected {' or '.join(CACHE_DTYPES)}.")
        self._check_augmentation()
        self._check_average()
        if self.metric_for_best_model is not None:
            self._check_metric(self.metric_for_best_model.removeprefix("eval_"))
        # With several GPUs in one process, transformers would use DataParallel, which changes the number of images per
        # step and the weights of the losses.
        if self.n_gpu > 1:
            logger.warning(f"Using 1 of {self.n_gpu} GPUs. To use all GPUs, start training with accelerate launch.")
            self._n_gpu = 1

    def _check_augmentation(self) -> None:
        views = self.augmentation_views
        if views is not None and views < 1:
            raise ValueError(f"augmentation_views is {views}; expected an integer of at least 1.")
        if self.augmentation is None:
            if views is not None:
                raise ValueError(f"augmentation_views is {views}, but augmentation is not set. Set it, or omit both.")
            return
        Augmentation(self.augmentation)
        if self.cache_features is not None and (views is None or views < 2):
            raise ValueError(
                f"augmentation_views is {views}; expected an integer of at least 2, because the feature cache stores "
                "every view. Set augmentation_views, or omit cache_features or augmentation."
            )

    def _check_average(self) -> None:
        start = self.average_weights_from
        if start is None:
            return
        planned = self.num_train_epochs if self.max_steps <= 0 else math.inf  # with max_steps, known in training
        if not 0 <= start < planned:
            limit = f" and less than num_train_epochs ({planned:g})" if math.isfinite(planned) else ""
            raise ValueError(f"average_weights_from is {start:g}; expected a number of at least 0{limit}.")
        if self.load_best_model_at_end:
            raise ValueError(
                "average_weights_from and load_best_model_at_end are both set; expected one of them, because each "
                "determines the final weights."
            )

    @staticmethod
    def _check_metric(metric: str) -> None:
        if not metric.endswith(METRICS):
            nearest = difflib.get_close_matches(metric, METRICS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
            raise ValueError(
                f"metric_for_best_model is {metric!r}; expected {', '.join(METRICS)}, or NAME_METRIC for the dataset "
                f"NAME{hint}"
            )


@dataclass
class ModelArguments:
    """The method, its backbone, and fields of the configuration of the model. See the help of each field."""

    method: str = field(
        default="vip2clip",
        metadata={
            "help": "The method to train: 'vip2clip', or another one with its published recipe, such as 'april-gan', "
            "'anomalyclip' or 'adaclip'. See docs/baselines.md."
        },
    )
    clip: str | None = field(
        default=None,
        metadata={
            "help": "The frozen backbone: folder or Hub id of a CLIP checkpoint, such as "
            "openai/clip-vit-large-patch14-336. Use 'bundled' for the small backbone of the package, or "
            "'random-tiny' for random weights, whose results are meaningless."
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --clip: a checkpoint whose adapters are trained further, for example on your own "
            "defects. Folder or Hub id, or 'bundled' for the small checkpoint of the package. Its backbone and its "
            "configuration are kept."
        },
    )
    variant: str = field(
        default="paper",
        metadata={"help": "The variant of the model. Options: 'paper', 'release'. See docs/paper-and-release.md."},
    )
    image_size: int = field(default=518, metadata={"help": "Side of the square input images in pixels."})
    feature_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Numbers of the vision blocks used as feature layers, counted from 1. Defaults to those of the "
            "method, such as 6 12 18 24."
        },
    )
    top_k: int = field(default=50, metadata={"help": "Number of top patches per layer used for the image score."})
    fgp_scaled: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the fine-grained perception divides its logits by the square root of the head size. "
            "Small backbones learn better without, see docs/tiny.md. Defaults to the value of the variant."
        },
    )
    set: list[str] | None = field(
        default=None,
        metadata={
            "action": "extend",
            "help": "Other fields of the configuration of the model, as NAME=VALUE, such as smoothing_sigma=8. "
            "Repeatable.",
        },
    )


@dataclass
class DataArguments:
    """The datasets to train and evaluate on, and the output. See the help of each field."""

    train_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or more datasets to train on, as [NAME=]ROOT: a benchmark (mvtec=path/to/MVTec), or a "
            "folder, table or Hub id with labels. See docs/data.md."
        },
    )
    eval_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or more datasets to evaluate on, as [NAME=]ROOT. Evaluated after training, and also during "
            "training with --eval_strategy."
        },
    )
    train_split: str = field(
        default="test", metadata={"help": "Split to train on. The paper trains on the test split."}
    )
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    mask_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Mask values greater than this are anomalous, for all datasets. Defaults to the benchmark's "
            "threshold, or 0. Use 127 for JPEG masks."
        },
    )
    mask_channel: str | None = field(
        default=None,
        metadata={
            "help": f"Where the values of masks come from. Options: {', '.join(MASK_CHANNELS)}. Defaults to auto."
        },
    )
    mask_invert: bool = field(
        default=False, metadata={"help": "Whether defects are dark on a bright background in the masks."}
    )
    mask_orientation: str | None = field(
        default=None,
        metadata={
            "help": "EXIF orientation of masks without one of their own. Options: "
            f"{', '.join(MASK_ORIENTATIONS)}. Defaults to auto."
        },
    )
    keep_small_regions: bool = field(
        default=True,
        metadata={"help": "Whether defects that vanish at the size of the model keep at least one pixel."},
    )
    bit_depth: int | None = field(
        default=None,
        metadata={"help": "Bits per value, from 8 to 16, of photos that store more than 8, such as 12. Saved."},
    )
    page: int | None = field(default=None, metadata={"help": "Page of photos with several pages, from 1. Saved."})
    normal_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of folders, or labels in tables, that mean normal. Not used for benchmarks.",
            "aliases": ["--normal-label"],
        },
    )
    anomalous_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of folders, or labels in tables, that mean anomalous. Not used for benchmarks.",
            "aliases": ["--anomalous-label"],
        },
    )
    adapters_only: bool = field(
        default=False,
        metadata={
            "help": "Leave the backbone out of the final checkpoint. Loading then fetches it from the Hub, or needs "
            "its folder."
        },
    )
    json: bool = field(default=False, metadata={"help": "Print the results as JSON."})


__all__ = ["DataArguments", "ModelArguments", "ViP2ClipTrainingArguments"]
