"""Trainer that records its runs: what was trained, on which data, and which checkpoints belong together."""

import math
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import SchedulerType, Trainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput
from transformers.utils import logging

from ..checkpoints.card import write_card
from ..checkpoints.saving import write_checkpoint
from ..data.benchmarks.registry import BENCHMARKS
from ..data.provenance import describe_training_set
from ..models.vip2clip.backbone_vip2clip import backbone_checksum
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..models.vip2clip.training_record_vip2clip import check_training_record, remember_weights
from ..utils.distributed import on_first, world
from ..utils.versions import versions
from .arguments import ViP2ClipTrainingArguments
from .averaging import WeightAveraging
from .contents import describe_contents
from .recipe import describe_recipe, recipe_of, rounding_of
from .resuming import STATE_FILE, load_adapters, run_of
from .run_folder import RunFolder, is_checkpoint_file
from .run_record import RunRecord
from .run_start import begin_run, union
from .selection import check_selection_value


if TYPE_CHECKING:
    from datasets import Dataset

    from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
    from .rows import EpochSampler

logger = logging.get_logger(__name__)


class RecordedTrainer(Trainer):
    """
    Base class of the trainers: the record and the checkpoints of a run.

    Attributes:
        run ([`RunRecord`], *optional*): record of the run. None before training.
        run_folder ([`RunFolder`]): output folder.
        files (`tuple[str, ...]`): names of files that the caller writes to the output folder besides the model.
        training_sets (`list[dict]`, *optional*): entries of `provenance.training_sets` for the training data.
        class_names (`bool`): whether the categories of the images are class names in prompts.
    """

    args: ViP2ClipTrainingArguments
    model: Any
    image_processor: "ViP2ClipImageProcessor"
    mask_options: MaskOptions
    results: dict[str, dict[str, Any]]
    _rows: "Dataset | None"
    class_names = False
    run: RunRecord | None = None
    files: tuple[str, ...] = ()
    training_sets: list[dict[str, Any]] | None = None
    _folder: RunFolder | None = None
    _sampler: "EpochSampler | None" = None
    _checksum: str | None = None
    _average: WeightAveraging | None = None
    _training, _limit = False, None
    _replaced: RunRecord | None = None

    @property
    def run_folder(self) -> RunFolder:
        """Return the output folder."""
        if self._folder is None or self._folder.path != Path(self.args.output_dir):
            self._folder = RunFolder(self.args.output_dir)
        return self._folder

    @property
    def optimizer_name(self) -> str:
        """Return the class of the optimizer."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        return "Adam" if optimizer is None else type(optimizer).__name__

    def train_recorded(self, resume: str | bool | None, train: Callable[[str | None], TrainOutput]) -> TrainOutput:
        """
        Train in the locked output folder, with a record of the run.

        Args:
            resume (`str` or `bool`, *optional*): see `train`.
            train (`Callable`): trains, from the path of a checkpoint or from the beginning.

        Returns:
            `TrainOutput`: the output of `train`.

        Raises:
            OSError, ValueError: see [`begin_run`].
        """
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        with self.locked():
            checkpoint, self.run, self._replaced = on_first(self._begin_run, resume, model)
            # Also datasets of a model that was changed elsewhere, before its weights change again.
            check_training_record(model)
            model.provenance.training_sets = list(self.run.training_sets)
            remember_weights(model)
            # The checkpoints are deleted here, because the library also deletes those of other runs.
            self._limit, args.save_total_limit = args.save_total_limit, None
            self._training = True
            try:
                output = train(checkpoint)
            finally:
                args.save_total_limit, self._limit, self._training = self._limit, None, False
                remember_weights(model)
            best = self.state.best_model_checkpoint
            if args.should_save and args.save_total_limit == 1 and best is not None:
                self.run_folder.rotate(self.run.run_id, 1, [best])
        return output

    def describe_rates(self) -> str:
        """Describe the learning rates for the model card."""
        return f"learning rate {self.args.learning_rate:g}"

    def write(
        self,
        folder: str | os.PathLike,
        *,
        adapters_only: bool = False,
        backbone_checksum: str | None = None,
        run: dict[str, Any] | None = None,
    ) -> Path:
        """
        Write the model and its image processor to a folder. See [`write_checkpoint`].

        Args:
            folder, adapters_only, backbone_checksum, run: see [`write_checkpoint`].

        Returns:
            `pathlib.Path`: the folder.

        Raises:
            OSError, ValueError: see [`write_checkpoint`].
        """
        model = self.accelerator.unwrap_model(self.model)
        return write_checkpoint(
            model,
            self.image_processor,
            folder,
            adapters_only=adapters_only,
            backbone_checksum=backbone_checksum,
            run=run,
        )

    def write_card(self, run: dict[str, Any]) -> None:
        """
        Write the model card in the output folder again, with new information.

        Args:
            run (`dict`): information about training and evaluation, see [`model_card`].

        Raises:
            OSError: if it cannot be written.
        """
        write_card(self.args.output_dir, run)

    def mask_settings(self) -> dict[str, Any]:
        """Return how masks are read: the values that are not the default of the image processor."""
        return self.mask_options.columns()

    @staticmethod
    def _eval_sets(eval_dataset: Any) -> dict[str, Any]:
        """Return evaluation datasets by name."""
        return dict(eval_dataset) if isinstance(eval_dataset, Mapping) else {"": eval_dataset}

    def locked(self) -> Any:
        """Lock the output folder in a `with` block. Only the first process writes to it."""
        return _Locked(self)

    def _begin_run(self, resume: str | bool | None, model: Any) -> tuple[str | None, RunRecord, RunRecord | None]:
        if self._rows is None:
            raise ValueError("train_dataset is None; expected a dataset to train on.")
        own = self.training_sets
        if own is None:
            own = [_describe_named(self._rows)]
        masks = self.mask_settings()
        names = self.class_names
        contents = describe_contents(self._rows, masks, class_names=names)
        data = {f"training data: {name}": value for name, value in contents.items()}
        if self.args.load_best_model_at_end and self.eval_dataset is not None:  # the epoch is chosen on it
            for name, rows in self._eval_sets(self.eval_dataset).items():
                prefix = f"evaluation data {name}".strip()
                contents = describe_contents(rows, masks, class_names=names)
                data.update({f"{prefix}: {key}": value for key, value in contents.items()})
        record = RunRecord(
            recipe=recipe_of(self),
            data=data,
            rounding=rounding_of(self),
            training_sets=union(model.provenance.training_sets, own),
        )
        return begin_run(
            self.run_folder,
            record,
            resume,
            overwrite=self.args.overwrite_output_dir,
            allow_changes=self.args.allow_changed_recipe,
            files=self.files,
        )

    # Checkpoints

    def _begin(self, step: int) -> None:
        """Called when everything is ready for training, at the given step: the folder is changed from here on."""

        self._check_average()

        def prepare() -> None:
            run, folder, replaced = self.run, self.run_folder, self._replaced
            if run is None:
                return
            own = (run.run_id, *(() if replaced is None else (replaced.run_id,)))
            folder.check_free([number for number in self._planned_steps() if number > step], *own)
            if replaced is not None:
                folder.delete_run(replaced)
            for name in folder.remove_incomplete(run.run_id):
                logger.warning(f"Removed {name}, which was not written completely.")
            run.write(folder.path)

        on_first(prepare)
        self._replaced = None

    def _planned_steps(self) -> list[int]:
        """Return the steps at which checkpoints will be saved. For `save_strategy="best"`, they are not known."""
        args, state = self.args, self.state
        strategy = SaveStrategy(args.save_strategy)
        if strategy == SaveStrategy.EPOCH:
            interval = self._steps_per_epoch()
        elif strategy == SaveStrategy.STEPS:
            interval = int(state.save_steps)
        else:
            return []
        return [*range(interval, state.max_steps, interval), state.max_steps]

    def _steps_per_epoch(self) -> int:
        args = self.args
        batches = len(self._sampler or ()) / (args.train_batch_size * args.world_size)
        batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
        return max(1, math.ceil(batches / args.gradient_accumulation_steps))

    def _check_average(self) -> None:
        """Check that the average begins before the end, which depends on the data with `max_steps`."""
        epochs = self.state.max_steps / self._steps_per_epoch()
        if self._average is not None and self._average.start >= epochs:
            raise ValueError(
                f"average_weights_from is {self._average.start:g}, but training ends at epoch {epochs:g}; expected a "
                "smaller number."
            )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = self.run_folder.path / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save and self.run is not None:
            self.run_folder.begin_checkpoint(folder, self.run)
            if self._average is not None:  # before the state file, which makes the checkpoint complete
                self._average.save(folder)
        super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save and self.run is not None:
            self.run_folder.rotate(self.run.run_id, self._limit, [folder, self.state.best_model_checkpoint])

    def record_files(self, names: list[str]) -> None:
        """
        Add files in the output folder to the record of the run, so that `overwrite_output_dir` deletes them.

        Args:
            names (`list[str]`): names of the files.
        """
        if self.run is not None and self.args.should_save:
            self.run.files = sorted({*self.run.files, *names})
            self.run.write(self.run_folder.path)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None, adapters_only: bool = False
    ) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if self._training:
            remember_weights(model)  # the data they were trained on is recorded
        folder = self.write(
            self.args.output_dir if output_dir is None else output_dir,
            adapters_only=adapters_only,
            backbone_checksum=self._backbone_checksum(model) if adapters_only else None,
            run={"recipe": describe_recipe(self), "versions": versions()} if self.run is not None else None,
        )
        if folder == self.run_folder.path:
            self.record_files([path.name for path in folder.iterdir() if is_checkpoint_file(path.name)])

    def _backbone_checksum(self, model: Any) -> str:
        """Return the checksum of the backbone, computed once: the backbone is frozen and has up to 1.7 GB."""
        if self._checksum is None:
            self._checksum = backbone_checksum(model.clip.state_dict(), model.clip.dtype)
        return self._checksum

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_adapters(resume_from_checkpoint)
        if self._average is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, STATE_FILE)))
            self._average.load(resume_from_checkpoint, state.epoch or 0.0)

    def _load_best_model(self) -> None:
        best, run = str(self.state.best_model_checkpoint), self.run
        runs = (None, *([] if run is None else [run.run_id, (run.continues or {}).get("run_id")]))
        if run_of(best) not in runs:
            raise OSError(f"{best!r}, the best checkpoint, was replaced by another training; the last one is kept.")
        logger.info(f"Loading {best}, the best model ({self.state.best_metric:.4f}).")
        self._load_adapters(best)

    def _load_adapters(self, folder: str) -> None:
        model = self.accelerator.unwrap_model(self.model)
        load_adapters(model, folder, self._backbone_checksum(model))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the estimate of transformers counts tokens, which does not apply

    def init_hf_repo(self, token: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Do nothing. Only the complete checkpoint is published, after training."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing. Only the complete checkpoint is published, after training."""

    # Resuming

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the state of the optimizer. If the recipe was changed, the rates are those of the new recipe."""
        if checkpoint is None or self.optimizer is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        rates = list(getattr(scheduler, "base_lrs", []))
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise OSError(
                f"The state of the optimizer in {checkpoint!r} cannot be loaded ({str(error).splitlines()[0]}); "
                "resume from another checkpoint."
            ) from error
        if self.run is None or not self.run.resumed or not self.run.resumed[-1]["changed"]:
            return
        lambdas = getattr(scheduler, "lr_lambdas", None)
        for number, (group, fresh) in enumerate(zip(self.optimizer.param_groups, options)):
            group.update({name: value for name, value in fresh.items() if name != "lr"})
            if lambdas is not None:
                group["lr"] = rates[number] * lambdas[number](scheduler.last_epoch)
        if lambdas is not None:
            scheduler.base_lrs = rates
            scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        elif "learning_rate" in self.run.resumed[-1]["changed"]:
            schedule = SchedulerType(self.args.lr_scheduler_type).value
            raise ValueError(
                f"learning_rate was changed, which has no effect with lr_scheduler_type {schedule!r} when resuming; "
                "use the original learning rate."
            )

    def _determine_best_metric(self, metrics: dict[str, float], *args: Any, **kwargs: Any) -> bool:
        metric = self.args.metric_for_best_model
        if metric is not None:
            check_selection_value(metric, metrics.get(f"eval_{metric.removeprefix('eval_')}"), self.results)
        return super()._determine_best_metric(metrics, *args, **kwargs)


class _Locked:
    """Lock of the output folder, held by the first process."""

    def __init__(self, trainer: RecordedTrainer) -> None:
        self.trainer, self.context = trainer, trainer.run_folder.locked()

    def __enter__(self) -> None:
        on_first(self.context.__enter__)

    def __exit__(self, *error: Any) -> None:
        if world()[0] == 0:
            self.context.__exit__(*error)


def _describe_named(dataset: "Dataset") -> dict[str, Any]:
    """Describe a training dataset with the name that it was loaded with, or "unnamed"."""
    info = dataset.info
    name, split = info.dataset_name or "unnamed", info.config_name or "test"
    known = BENCHMARKS.get(name)
    benchmark = name if known is not None and info.homepage == known.source else None
    return describe_training_set(dataset, os.path.basename(name) if os.path.isabs(name) else name, benchmark, split)


__all__ = ["RecordedTrainer"]
