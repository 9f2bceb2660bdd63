"""ViP²-CLIP with the settings of a row, as a detector that can be trained."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback, set_seed

from ..checkpoints.bundled import BUNDLED, bundled_backbone
from ..checkpoints.saving import write_checkpoint
from ..inference.detector import ViP2ClipDetector
from ..models.small_text_tower import state_word_tokenizer
from ..models.vip2clip.backbone_vip2clip import backbone_checksum, load_clip
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..training.arguments import ViP2ClipTrainingArguments
from ..training.recipe import describe_recipe
from ..training.trainer import ViP2ClipTrainer
from ..utils.versions import versions
from .feature_memory import FeatureMemory, RememberingDetector
from .plan_types import Plan
from .settings import halved_batch, model_fields, overrides_of, training_fields


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import CLIPModel


NO_WEIGHTS = "{} has no weights; call train, load or create first."


@lru_cache(maxsize=1)
def load_backbone(name: str) -> "CLIPModel":
    """
    Load the backbone of a plan. It is kept, because all models share it.

    Args:
        name (`str`): folder or Hub id of a CLIP checkpoint, or `"bundled"`.

    Returns:
        `CLIPModel`: the backbone. Models get a copy of its weights.

    Raises:
        OSError: if the backbone is not found.
    """
    return bundled_backbone() if name == BUNDLED else load_clip(name)[0]


def checksum_of_backbone(plan: Plan) -> str:
    """
    Compute the checksum of the backbone of a plan.

    Args:
        plan ([`Plan`]): the plan.

    Returns:
        `str`: the checksum.

    Raises:
        OSError: if the backbone is not found.
    """
    return backbone_checksum(load_backbone(plan.backbone).state_dict(), torch.float32)


def create_model(plan: Plan, setting: str, seed: int) -> ViP2ClipForAnomalyDetection:
    """
    Create a model with new adapters.

    Args:
        plan ([`Plan`]): the plan.
        setting (`str`): name of the setting.
        seed (`int`): random seed of the adapters.

    Returns:
        [`ViP2ClipForAnomalyDetection`]: the model in float32, in eval mode.

    Raises:
        OSError: if the backbone is not found.
        ValueError: if a field of the configuration is not valid.
    """
    tokenizer = state_word_tokenizer() if plan.backbone == BUNDLED else None
    clip = load_backbone(plan.backbone)
    set_seed(seed)
    return ViP2ClipForAnomalyDetection.from_clip(
        clip, tokenizer=tokenizer, **model_fields(plan, overrides_of(setting))
    )


class TrainingBar(ProgressCallback):
    """The progress bar of a training, without a line for each log entry."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing: there are many trainings."""


class ViP2ClipMethod:
    """
    ViP²-CLIP with the settings of a row: a [`TrainableDetector`].

    Args:
        plan ([`Plan`]): the plan.
        setting (`str`): name of the setting.
        device (`str`, *optional*): device. By default, an accelerator if available.
        memory ([`FeatureMemory`], *optional*): keeps features of the backbone.
        training_sets (`list[dict]`, *optional*): entries of [`describe_training_set`] for the training data.
        cache (`pathlib.Path`, *optional*): folder of the feature cache, if the plan uses one.
        progress (`bool`, defaults to `False`): whether to show progress bars.
    """

    def __init__(
        self,
        plan: Plan,
        setting: str,
        *,
        device: str | None = None,
        memory: FeatureMemory | None = None,
        training_sets: list[dict[str, Any]] | None = None,
        cache: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.plan, self.setting, self.name = plan, setting, f"ViP²-CLIP, {setting}"
        self.device, self.memory, self.training_sets, self.cache = device, memory, training_sets, cache
        self.progress = progress
        self.image_size = int(model_fields(plan, {}).get("image_size", 518))
        self._detector: ViP2ClipDetector | None = None
        self._scoring: ViP2ClipDetector | RememberingDetector | None = None

    def train(self, dataset: "Dataset", *, seed: int, folder: Path, halved: bool = False) -> dict[str, Any]:
        """
        Train adapters and write them to a folder, or resume an interrupted training in it.

        Args:
            dataset (`datasets.Dataset`): images to train on.
            seed (`int`): random seed.
            folder (`pathlib.Path`): folder of the training, with an adapters-only checkpoint at the end.
            halved (`bool`, defaults to `False`): whether to halve the batch and accumulate two of them. The gradients
                are the same.

        Returns:
            `dict`: `seconds`, `steps` and `trained_weights`.
        """
        model = create_model(self.plan, self.setting, seed)
        processor = ViP2ClipImageProcessor(size=model.config.image_size)
        trainer = ViP2ClipTrainer(
            model,
            self._arguments(seed, folder, halved),
            processor,
            train_dataset=dataset,
            training_sets=self.training_sets,
        )
        if self.progress:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(TrainingBar)
        else:
            trainer.remove_callback(PrinterCallback)  # it prints the time of each training
        with trainer.locked():
            resume = True if any(folder.glob("checkpoint-*")) else None
            output = trainer.train(resume_from_checkpoint=resume)
            run = {"recipe": describe_recipe(trainer), "versions": versions()}
            write_checkpoint(model, processor, folder, adapters_only=True, run=run)
        weights = sum(one.numel() for one in model.parameters() if one.requires_grad)
        self._use(model.eval(), processor)
        return {
            "seconds": output.metrics["train_runtime"],
            "steps": output.global_step,
            "trained_weights": weights,
        }

    def _arguments(self, seed: int, folder: Path, halved: bool) -> ViP2ClipTrainingArguments:
        fields = training_fields(self.plan)
        if halved:
            fields = halved_batch(fields)
        if self.cache is not None:
            fields["cache_features"] = str(self.cache)
        if self.device == "cpu":
            fields["use_cpu"] = True
        defaults = {"report_to": "none", "disable_tqdm": not self.progress, "logging_strategy": "no"}
        return ViP2ClipTrainingArguments(output_dir=str(folder), seed=seed, **{**defaults, **fields})

    def load(self, folder: Path) -> None:
        """Load the adapters that a training wrote to a folder."""
        model = ViP2ClipForAnomalyDetection.from_pretrained(folder, backbone=load_backbone(self.plan.backbone))
        self._use(model, ViP2ClipImageProcessor.from_pretrained(folder))

    def create(self, seed: int) -> None:
        """Use new adapters without training."""
        model = create_model(self.plan, self.setting, seed)
        self._use(model, ViP2ClipImageProcessor(size=model.config.image_size))

    def _use(self, model: ViP2ClipForAnomalyDetection, processor: ViP2ClipImageProcessor) -> None:
        model.to(device_of(self.device))  # type: ignore[arg-type]  # the library declares `to` without `self`
        self._detector = ViP2ClipDetector(model, processor, name=self.name)
        self._scoring = self._detector if self.memory is None else RememberingDetector(self._detector, self.memory)

    @property
    def detector(self) -> ViP2ClipDetector:
        """The detector, after `train`, `load` or `create`."""
        if self._detector is None:
            raise RuntimeError(NO_WEIGHTS.format(self.name))
        return self._detector

    @property
    def prepare(self) -> Any:
        """See [`Detector`]. A function without the model, for the workers that read images."""
        return self._ready().prepare

    def score(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See [`Detector`]."""
        return self._ready().score(batch)

    def _ready(self) -> "ViP2ClipDetector | RememberingDetector":
        if self._scoring is None:
            raise RuntimeError(NO_WEIGHTS.format(self.name))
        return self._scoring


def device_of(name: str | None) -> str:
    """Return the device to use: the one with this name, or an accelerator if available."""
    if name is not None:
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


__all__ = [
    "NO_WEIGHTS",
    "TrainingBar",
    "ViP2ClipMethod",
    "checksum_of_backbone",
    "create_model",
    "device_of",
    "load_backbone",
]
