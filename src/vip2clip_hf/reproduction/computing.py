"""Train and evaluate what a reproduction needs, and find what is finished in its folder."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..baselines.methods import find_method
from ..evaluation.detector import Detector
from ..evaluation.evaluator import evaluate_detector
from ..evaluation.recorder import EvaluationRecorder
from ..evaluation.set_results import with_nan
from .datasets import PlanDatasets
from .feature_memory import FeatureMemory
from .less_memory import is_disk_error, sentence_of, with_less_memory
from .method import ViP2ClipMethod
from .plan_types import Plan
from .rivals import Rival, TrainedRival, rival_arguments
from .settings import UNTRAINED, training_fields
from .store import Store
from .work import Evaluation, Need, Unit, Work


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)


@dataclass
class Reproduction:
    """
    A reproduction in a folder: the plan, what it needs, and what is finished.

    Args:
        plan ([`Plan`]): the plan.
        targets (`list[str]`): result of [`parse_targets`].
        store ([`Store`]): the folder.
        data ([`PlanDatasets`]): the datasets.
        work ([`Work`]): trainings and evaluations.
        needs (`list[Need]`): what the targets need.
        detectors (`Mapping[str, Callable[[], Detector]]`): other detectors by name.
        device (`str`, *optional*): device.
        progress (`bool`): whether to show progress bars.
        failures (`dict[str, str]`): why a training or an evaluation failed, by hash.
    """

    plan: Plan
    targets: list[str]
    store: Store
    data: PlanDatasets
    work: Work
    needs: list[Need]
    detectors: Mapping[str, Callable[[], Detector]]
    device: str | None = None
    progress: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    memory: FeatureMemory | None = None

    def is_done(self, unit: Unit) -> bool:
        """Whether a training is not needed any more: all its results are there, and its model if it is needed."""
        evaluated = all(self.store.result(one.digest) is not None for one in unit.evaluations)
        return evaluated and (not unit.keep or self._has_model(unit))

    def _has_model(self, unit: Unit) -> bool:
        # A detector that cannot be loaded is trained again where a picture needs it.
        forgets = unit.detector is not None and not unit.kept
        return forgets or not _is_trained(unit) or self.store.training(unit.key.digest) is not None

    def is_possible(self, unit: Unit) -> bool:
        """Whether all datasets of a training and of at least one missing evaluation are there."""
        if any(self.data.problem(name) for name in unit.key.train):
            return False
        return bool(self.missing_evaluations(unit)) or (unit.keep and not self._has_model(unit))

    def needs_training(self, unit: Unit) -> bool:
        """Whether a model has to be trained for a unit that is not finished."""
        return _is_trained(unit) and self.store.training(unit.key.digest) is None

    def missing_evaluations(self, unit: Unit) -> list[Evaluation]:
        """List the evaluations of a unit that are not finished and whose dataset is there."""
        return [
            one
            for one in unit.evaluations
            if self.store.result(one.digest) is None and self.data.problem(one.dataset) is None
        ]

    def num_steps(self, unit: Unit) -> int:
        """Count the steps of a training."""
        keys = [key for key in self.plan.methods if find_method(key).name == unit.detector]
        fields = rival_arguments(self.plan, keys[0]) if keys else training_fields(self.plan)
        if (steps := fields.get("max_steps", -1)) > 0:
            return int(steps)
        size = fields.get("per_device_train_batch_size", 8) * fields.get("gradient_accumulation_steps", 1)
        num_images = sum(len(self.data[name]) for name in unit.key.train)
        return math.ceil(fields.get("num_train_epochs", 3) * math.ceil(num_images / size))

    def remaining(self) -> list[Unit]:
        """List the units that can be computed and are not finished."""
        return [unit for unit in self.work.units.values() if not self.is_done(unit) and self.is_possible(unit)]

    def results(self) -> dict[str, dict[str, Any] | None]:
        """Return the result of each evaluation by hash."""
        digests = [one.digest for unit in self.work.units.values() for one in unit.evaluations]
        stored = {digest: self.store.result(digest) for digest in digests}
        return {digest: None if result is None else with_nan(result) for digest, result in stored.items()}

    # Computing

    def run(self) -> None:
        """Train and evaluate everything that is missing. A unit that fails is recorded in `failures`."""
        units = self.remaining()
        bar = tqdm(total=len(units), desc="rows", unit="training", disable=not self.progress, dynamic_ncols=True)
        with bar:
            while units:
                left = [unit for unit in units if not self._locked(unit, bar)]
                if len(left) == len(units):  # all of them belong to other programs
                    self._wait(left[0])
                units = [unit for unit in left if not self.is_done(unit)]

    def _locked(self, unit: Unit, bar: Any) -> bool:
        """Compute a unit. `False` if another program is computing it."""
        lock = self.store.lock(unit.key.digest)
        if lock is None:
            return False
        try:
            bar.set_postfix_str(unit.title)
            if not self.is_done(unit):
                self._compute(unit)
        finally:
            lock.release()
        bar.update()
        return True

    def _wait(self, unit: Unit) -> None:
        logger.warning(f"Another program is computing {unit.title}. Waiting for it to finish.")
        lock = self.store.lock(unit.key.digest, wait=True)
        if lock is not None:
            lock.release()

    def _compute(self, unit: Unit) -> None:
        try:
            detector = with_less_memory(unit.title, lambda halved: self._detector(unit, halved))
        except Exception as error:  # a detector of the user can raise anything
            if is_disk_error(error):
                raise
            self._fail(unit.key.digest, unit.title, error)
            self.failures |= {one.digest: self.failures[unit.key.digest] for one in unit.evaluations}
            return
        for one in self.missing_evaluations(unit):
            title = f"{unit.title}, on {one.dataset}"
            try:
                self._finish(unit, one, title, detector)
            except Exception as error:
                if is_disk_error(error):
                    raise
                self._fail(one.digest, title, error)

    def _finish(self, unit: Unit, one: Evaluation, title: str, detector: Detector) -> None:
        """Evaluate a detector, and write the result."""
        dataset, start = self.data[one.dataset], time.perf_counter()
        progress = self.store.progress_folder(one.digest)
        result = with_less_memory(
            title, lambda halved: self.evaluate(detector, dataset, one.dataset, halved=halved, progress=progress)
        )
        about: dict[str, Any] = {
            "setting": unit.key.setting, "train": unit.key.train, "seed": unit.key.seed, "dataset": one.dataset,
            "training": unit.key.digest, "plan": self.plan.name, "num_images": len(dataset), "name": one.dataset,
            "benchmark": self.data.source(one.dataset).benchmark, "split": "test", "trained_on": [],
            "seconds": time.perf_counter() - start,
        }  # fmt: skip
        if unit.key.train:
            about["trained_on"] = self.data.overlap(unit.key.train, one.dataset)
            for reason in about["trained_on"]:
                logger.warning(f"{title}: not zero-shot, {reason}.")
        self.store.finish_result(one.digest, {**about, **result})

    def _fail(self, digest: str, title: str, error: Exception) -> None:
        sentence = sentence_of(error)
        self.failures[digest] = f"failed: {sentence}"
        logger.warning(f"{title} failed: {sentence}")

    def _detector(self, unit: Unit, halved: bool = False) -> Detector:
        """Return the trained detector of a unit, from its folder if it is finished."""
        folder = self.store.training_folder(unit.key.digest)
        done = self.store.training(unit.key.digest)
        if unit.detector is not None:
            detector: Any = self.detectors[unit.detector]()
            if unit.kept and done is not None:
                detector.load(folder)
            elif unit.key.train:
                self._train_other(unit, detector, folder, halved)
            return detector
        method = self.method(unit.key.setting)
        if not _is_trained(unit):
            method.create(unit.key.seed)
        elif done is not None:
            method.load(folder)
        else:
            dataset, method.training_sets = self.data.training_set(unit.key.train)
            halved = self.store.begin_training(unit.key.digest, halved)
            record = method.train(dataset, seed=unit.key.seed, folder=folder, halved=halved)
            about = {"settings": unit.key.content, "setting": unit.key.setting, "train": unit.key.train}
            self.store.finish_training(unit.key.digest, {**about, "halved": halved, **record})
        return method

    def _train_other(self, unit: Unit, detector: Any, folder: Path, halved: bool) -> None:
        """Train a detector that is not ViP²-CLIP, and keep its weights if it can load them."""
        dataset, training_sets = self.data.training_set(unit.key.train)
        options: dict[str, Any] = {}
        if isinstance(detector, TrainedRival):
            halved = self.store.begin_training(unit.key.digest, halved)
            options = {"training_sets": training_sets, "halved": halved}
        elif unit.kept:
            self.store.begin_training(unit.key.digest, halved=False)
        folder.mkdir(parents=True, exist_ok=True)
        record = detector.train(_decoded(dataset), seed=unit.key.seed, folder=folder, **options)
        if unit.kept:
            about = {"settings": unit.key.content, "setting": unit.key.setting, "train": unit.key.train}
            about |= {"halved": options["halved"]} if "halved" in options else {}
            self.store.finish_training(unit.key.digest, {**about, **(record or {})})

    def method(self, setting: str) -> ViP2ClipMethod:
        """Return ViP²-CLIP with a setting, without weights."""
        return ViP2ClipMethod(
            self.plan,
            setting,
            device=self.device,
            memory=self.memory,
            cache=self.store.folder / "cache" if self.plan.feature_cache else None,
            progress=self.progress,
        )

    def model_of(self, setting: str, dataset: str) -> Any:
        """
        Load the model of the first seed.

        Args:
            setting (`str`): name of a setting or of a detector of the user.
            dataset (`str`): the dataset to use it on.

        Returns:
            [`Detector`], *optional*: the detector. `None` if it is not trained.
        """
        digest = self.work.models.get((setting, dataset))
        unit = self.work.units.get(digest or "")
        if unit is None or not self._has_model(unit) or digest in self.failures:
            return None
        return self._detector(unit)

    def is_rival(self, name: str) -> bool:
        """Whether a detector is a method of the plan, and not a detector of the user with its name."""
        return isinstance(self.detectors[name](), Rival) if name in self.detectors else False

    def evaluate(
        self,
        detector: Detector,
        dataset: "Dataset",
        name: str,
        *,
        halved: bool = False,
        progress: Path | None = None,
    ) -> dict[str, Any]:
        """
        Evaluate a detector with the settings of the plan.

        Args:
            detector ([`Detector`]): the detector.
            dataset (`datasets.Dataset`): images of a dataset of the plan.
            name (`str`): its name.
            halved (`bool`, defaults to `False`): whether to halve the batch.
            progress (`pathlib.Path`, *optional*): folder that keeps the progress, to resume.

        Returns:
            `dict`: the result, see [`evaluate_detector`].
        """
        settings = self.plan.evaluation
        size = int(settings["batch_size"])
        return evaluate_detector(
            detector,
            dataset,
            batch_size=max(1, size // 2) if halved else size,
            mask_options=self.data.source(name).mask_options,
            fpr_limit=settings["fpr_limit"],
            aupro_convention=settings["aupro_convention"],
            num_workers=0 if self.memory is not None else int(settings["num_workers"]),
            progress=f"  {name}" if self.progress else False,
            recorder=EvaluationRecorder(len(dataset), progress),
        )


def _decoded(dataset: "Dataset") -> "Dataset":
    """Decode images and masks when they are read, as [`load_folder`] does."""
    from datasets import Image

    return dataset.cast_column("image", Image()).cast_column("mask", Image())


def _is_trained(unit: Unit) -> bool:
    return unit.key.setting != UNTRAINED if unit.detector is None else bool(unit.key.train)


__all__ = ["Reproduction"]
