"""The other methods of Tables 1 to 3 as detectors of a reproduction, on the backbone of the plan."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback

from ..baselines.detector import BaselineDetector
from ..baselines.methods import Method, create_model, find_method
from ..baselines.training import BaselineTrainer
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..training.arguments import ViP2ClipTrainingArguments
from ..training.recipe import describe_recipe
from ..utils.versions import versions
from .method import NO_WEIGHTS, TrainingBar, device_of, load_backbone
from .plan_types import Plan
from .settings import RUN_ARGUMENTS, halved_batch, model_fields, recipe_fields


if TYPE_CHECKING:
    from datasets import Dataset


def rival_fields(plan: Plan, key: str) -> dict[str, Any]:
    """
    Return the fields of the configuration of a method: the image size of the plan, and those in `methods`.

    Args:
        plan ([`Plan`]): the plan.
        key (`str`): name of the method.

    Returns:
        `dict[str, Any]`: fields of the configuration.
    """
    return {"image_size": model_fields(plan, {}).get("image_size", 518), **plan.methods[key].get("model", {})}


def rival_arguments(plan: Plan, key: str) -> dict[str, Any]:
    """
    Return the training arguments of a method: those of its recipe, and those in `methods`.

    Args:
        plan ([`Plan`]): the plan.
        key (`str`): name of the method.

    Returns:
        `dict[str, Any]`: fields of [`ViP2ClipTrainingArguments`], without `output_dir` and `seed`.
    """
    return {**recipe_fields(key), **plan.methods[key].get("training", {})}


class Rival:
    """
    A method that is not trained, as a [`Detector`] of a reproduction. Its model is loaded when it is used.

    Args:
        plan ([`Plan`]): the plan.
        method ([`Method`]): the method.
        backbone (`str`): checksum of the backbone.
        device (`str`, *optional*): device. By default, an accelerator if available.
        cache (`pathlib.Path`, *optional*): folder of the feature cache, if the plan uses one.
        progress (`bool`, defaults to `False`): whether to show progress bars.
    """

    def __init__(
        self,
        plan: Plan,
        method: Method,
        backbone: str,
        *,
        device: str | None = None,
        cache: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.plan, self.method, self.backbone, self.name = plan, method, backbone, method.name
        self.device, self.cache, self.progress = device, cache, progress
        self.image_size = int(rival_fields(plan, method.key)["image_size"])
        self._detector: BaselineDetector | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the results."""
        return {"backbone": self.backbone, "model": rival_fields(self.plan, self.method.key)}

    @property
    def detector(self) -> BaselineDetector:
        """The detector."""
        if self._detector is None:
            self._use(self._create(seed=0))
        return self._detector  # type: ignore[return-value]  # set by _use

    def _create(self, seed: int) -> Any:
        return create_model(self.method.key, self.plan.backbone, seed=seed, **rival_fields(self.plan, self.method.key))

    def _use(self, model: Any) -> None:
        model.eval().to(device_of(self.device))
        self._detector = BaselineDetector(model, ViP2ClipImageProcessor(size=model.config.side))

    def for_category(self, category: str) -> BaselineDetector:
        """Return the detector of a category, with its class name."""
        return self.detector.for_category(category)

    @property
    def prepare(self) -> Any:
        """See [`Detector`]. A function without the model, for the workers that read images."""
        return self.detector.prepare

    def score(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See [`Detector`]."""
        return self.detector.score(batch)


class TrainedRival(Rival):
    """A method that is trained, as a [`TrainableDetector`] whose weights are kept. See [`Rival`]."""

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the results, without the training data."""
        used = rival_arguments(self.plan, self.method.key)
        arguments = {name: value for name, value in used.items() if name not in RUN_ARGUMENTS}
        cached = self.cache is not None and self.method.model_class.caches_features
        return {**super().settings, "training": arguments, "feature_cache": cached}

    @property
    def detector(self) -> BaselineDetector:
        """The detector, after `train` or `load`."""
        if self._detector is None:
            raise RuntimeError(NO_WEIGHTS.format(self.name))
        return self._detector

    def train(
        self,
        dataset: "Dataset",
        *,
        seed: int,
        folder: Path,
        training_sets: list[dict[str, Any]] | None = None,
        halved: bool = False,
    ) -> dict[str, Any]:
        """
        Train the method and write its weights to a folder, or resume an interrupted training in it.

        Args:
            dataset (`datasets.Dataset`): images to train on.
            seed (`int`): random seed.
            folder (`pathlib.Path`): folder of the training, with an adapters-only checkpoint at the end.
            training_sets (`list[dict]`, *optional*): entries of [`describe_training_set`] for the training data.
            halved (`bool`, defaults to `False`): whether to halve the batch and accumulate two of them.

        Returns:
            `dict`: `seconds`, `steps` and `trained_weights`.
        """
        model = self._create(seed)
        processor = ViP2ClipImageProcessor(size=model.config.side)
        fields = {"report_to": "none", "logging_strategy": "no", **rival_arguments(self.plan, self.method.key)}
        fields["disable_tqdm"] = not self.progress
        if halved:
            fields = halved_batch(fields)
        if self.cache is not None and model.caches_features:
            fields["cache_features"] = str(self.cache)
        if self.device == "cpu":
            fields["use_cpu"] = True
        args = ViP2ClipTrainingArguments(output_dir=str(folder), seed=seed, **fields)
        trainer = BaselineTrainer(model, args, processor, dataset, training_sets=training_sets)
        trainer.remove_callback(ProgressCallback if self.progress else PrinterCallback)
        if self.progress:
            trainer.add_callback(TrainingBar)
        with trainer.locked():
            output = trainer.train(resume_from_checkpoint=True if any(folder.glob("checkpoint-*")) else None)
            trainer.write(folder, adapters_only=True, run={"recipe": describe_recipe(trainer), "versions": versions()})
        self._use(model)
        weights = sum(one.numel() for one in model.parameters() if one.requires_grad)
        return {
            "seconds": output.metrics["train_runtime"],
            "steps": output.global_step,
            "trained_weights": weights,
        }

    def load(self, folder: Path) -> None:
        """Load the weights that a training wrote to a folder."""
        self._use(self.method.model_class.from_pretrained(folder, backbone=load_backbone(self.plan.backbone)))


def rivals_of(
    plan: Plan, backbone: str, *, device: str | None = None, cache: Path | None = None, progress: bool = False
) -> dict[str, Callable[[], Rival]]:
    """
    List the other methods of a plan.

    Args:
        plan ([`Plan`]): the plan.
        backbone (`str`): checksum of its backbone.
        device, cache, progress: see [`Rival`].

    Returns:
        `dict[str, Callable[[], Rival]]`: functions that create the detectors, by name in tables.
    """

    def creator(method: Method) -> Callable[[], Rival]:
        kind = TrainedRival if method.trained else Rival
        return lambda: kind(plan, method, backbone, device=device, cache=cache, progress=progress)

    return {method.name: creator(method) for method in map(find_method, plan.methods)}


__all__ = ["Rival", "TrainedRival", "rival_arguments", "rival_fields", "rivals_of"]
