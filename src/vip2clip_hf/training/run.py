"""Run a training from its arguments: load the data, build the model, train, evaluate, and write the checkpoint."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import CLIPConfig, CLIPModel, set_seed

from ..checkpoints.bundled import BUNDLED, bundled_backbone, bundled_checkpoint
from ..checkpoints.saving import check_target
from ..data.provenance import describe_training_set, find_training_overlap
from ..data.sources import DataSource, concatenate
from ..models.small_text_tower import state_word_tokenizer
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.files import name_of, write_atomically
from ..utils.serialization import to_json, without_nan
from ..utils.settings import read_settings
from ..utils.versions import versions
from .adapter_trainer import AdapterTrainer
from .arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from .recipe import describe_recipe
from .run_folder import RESULTS_FILE, is_checkpoint_file
from .selection import describe_selection
from .trainer import ViP2ClipTrainer


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


def run_training(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: ViP2ClipTrainingArguments,
    *,
    before_training: Callable[[], None] | None = None,
    kind: "TrainingKind | None" = None,
) -> dict[str, Any]:
    """
    Train adapters, evaluate them, and write a complete checkpoint with `results.json` to `arguments.output_dir`.

    Args:
        model_arguments ([`ModelArguments`]): the backbone and the settings of the model.
        data_arguments ([`DataArguments`]): the datasets. Without `eval_data`, the model is not evaluated.
        arguments ([`ViP2ClipTrainingArguments`]): the training arguments.
        before_training (`Callable`, *optional*): called after the data and the output folder are checked and before
            the model is loaded, for example to check the access to the Hub.
        kind ([`TrainingKind`], *optional*): the method, by default ViP²-CLIP.

    Returns:
        `dict`: `training_sets`, `losses`, `history`, `recipe`, `versions` and `results`. `results` is a list with the
        output of `evaluate_model` for each dataset, extended by `name`, `benchmark` and `trained_on`. If the weights
        of the best epoch were loaded, also by `chosen_on`, the reasons why they were chosen on this dataset.

    Raises:
        ValueError: if the backbone or the training dataset is missing, if several datasets have the same name, or if
            there is nothing to learn from the training data. When resuming, also if the settings or the data changed.
        OSError: if the data, the backbone or a checkpoint cannot be read, if the output folder contains another run or
            other files that would be replaced, or if it cannot be written.
        RuntimeError: if the loss is not finite.
    """
    folder = check_target(arguments.output_dir)
    prepared = prepare_training(model_arguments, data_arguments, arguments, before_training=before_training, kind=kind)
    trainer, model, eval_datasets = prepared.trainer, prepared.trainer.model, prepared.eval_datasets
    trainer.training_sets = [
        describe_training_set(dataset, source.name, source.benchmark, source.split)
        for source, dataset in zip(prepared.train_sources, prepared.train_sets)
    ]
    trainer.files = (RESULTS_FILE,)
    resume: Any = arguments.resume_from_checkpoint
    resume = True if str(resume).lower() == "true" else None if str(resume).lower() == "false" else resume
    with trainer.locked():  # until the results are written
        trainer.train(resume_from_checkpoint=resume)
        first = trainer.is_world_process_zero()
        name = "variant" if kind is None else "method"
        if model_arguments.model is not None:
            origin = {"continued from": name_of(model_arguments.model)}
        else:
            origin = {name: getattr(model_arguments, name)}
        recipe = {**origin, **describe_recipe(trainer)}
        run = {"recipe": recipe, "versions": versions()}
        if first:  # before the evaluation, which can fail
            trainer.write(folder, adapters_only=data_arguments.adapters_only, run=run)
            trainer.record_files([path.name for path in folder.iterdir() if is_checkpoint_file(path.name)])
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        report: dict[str, Any] = {
            "training_sets": model.provenance.training_sets,
            "losses": [entry["loss"] for entry in history],
            "history": history,
            "results": [],
            **run,
        }
        if prepared.eval_sources:
            chosen = trainer.state.best_model_checkpoint if arguments.load_best_model_at_end else None
            trainer.evaluate()
            for source, dataset in zip(prepared.eval_sources, prepared.eval_sets):
                seen = find_training_overlap(model.provenance.training_sets, dataset, source.benchmark)
                result = {"name": source.name, "benchmark": source.benchmark, "trained_on": seen}
                if chosen is not None and arguments.metric_for_best_model is not None:
                    result["chosen_on"] = describe_selection(
                        arguments.metric_for_best_model, source.name, eval_datasets
                    )
                report["results"].append({**result, **trainer.results[source.name]})
        if first:
            write_atomically(Path(folder, RESULTS_FILE), to_json(without_nan(report)))
            trainer.record_files([RESULTS_FILE])
            trainer.write_card({**run, "results": report["results"]})
    return report


@dataclass(frozen=True)
class TrainingKind:
    """
    How the model of a method is built and trained.

    Args:
        build (`Callable[[ModelArguments, int], Any]`): builds the model from the arguments and the random seed.
        trainer (`type[AdapterTrainer]`): class of the trainer.
    """

    build: Callable[[ModelArguments, int], Any]
    trainer: type[AdapterTrainer]


@dataclass
class PreparedTraining:
    """
    A training that is ready to start: the trainer, and the datasets as they were named.

    Args:
        trainer ([`AdapterTrainer`]): the trainer.
        train_sources, eval_sources (`list[DataSource]`): names and locations of the datasets.
        train_sets, eval_sets (`list[datasets.Dataset]`): their images, in the same order.
    """

    trainer: AdapterTrainer
    train_sources: list[DataSource]
    train_sets: list["Dataset"]
    eval_sources: list[DataSource]
    eval_sets: list["Dataset"]

    @property
    def train_dataset(self) -> "Dataset":
        """All images to train on, with their options for masks."""
        return concatenate(self.train_sources, self.train_sets)

    @property
    def eval_datasets(self) -> dict[str, "Dataset"]:
        """The datasets to evaluate on by name, with their options for masks."""
        return {s.name: concatenate([s], [dataset]) for s, dataset in zip(self.eval_sources, self.eval_sets)}


def prepare_training(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: ViP2ClipTrainingArguments,
    *,
    before_training: Callable[[], None] | None = None,
    kind: TrainingKind | None = None,
) -> PreparedTraining:
    """
    Load the data and the model of a training.

    Args:
        model_arguments, data_arguments, arguments, before_training, kind: see [`run_training`].

    Returns:
        [`PreparedTraining`]: the training.

    Raises:
        ValueError, OSError: see [`run_training`].
    """
    if not data_arguments.train_data:
        raise ValueError("--train_data is missing; expected one or more datasets to train on.")
    train_sources, train_sets = _read_sources(data_arguments, data_arguments.train_data, data_arguments.train_split)
    eval_sources, eval_sets = _read_sources(data_arguments, data_arguments.eval_data, data_arguments.eval_split)
    if before_training is not None:
        before_training()
    kind = TrainingKind(_build_model, ViP2ClipTrainer) if kind is None else kind
    model = kind.build(model_arguments, arguments.seed)
    image_processor = _image_processor(model_arguments, data_arguments, model)
    eval_datasets = {s.name: concatenate([s], [dataset]) for s, dataset in zip(eval_sources, eval_sets)}
    trainer = kind.trainer(
        model,
        arguments,
        image_processor,
        train_dataset=concatenate(train_sources, train_sets),
        eval_dataset=eval_datasets or None,
    )
    return PreparedTraining(trainer, train_sources, train_sets, eval_sources, eval_sets)


def _image_processor(
    model_arguments: ModelArguments, data_arguments: DataArguments, model: Any
) -> ViP2ClipImageProcessor:
    """Saved with the checkpoint, so evaluation and prediction read photos and masks in the same way."""
    options: dict[str, Any] = {
        "bit_depth": data_arguments.bit_depth,
        "page": data_arguments.page,
        "mask_threshold": data_arguments.mask_threshold,
        "mask_channel": data_arguments.mask_channel,
        "mask_invert": data_arguments.mask_invert or None,
        "mask_orientation": data_arguments.mask_orientation,
    }
    if model_arguments.model is None:
        return ViP2ClipImageProcessor(size=model.config.image_size, **options)
    given = {name: value for name, value in options.items() if value is not None}
    return ViP2ClipImageProcessor.from_pretrained(checkpoint_of(model_arguments), **given)


def checkpoint_of(arguments: ModelArguments) -> str:
    """
    Find the checkpoint whose adapters are trained further.

    Args:
        arguments ([`ModelArguments`]): the arguments, with `model`.

    Returns:
        `str`: folder or Hub id.

    Raises:
        ValueError: if an argument is set that the checkpoint determines.
    """
    defaults = ModelArguments()
    for name in ("clip", "variant", "image_size", "feature_layers", "top_k", "fgp_scaled", "set"):
        value = getattr(arguments, name)
        if value != getattr(defaults, name):
            raise ValueError(
                f"{name} (--{name}) is {value!r}, but the checkpoint of --model determines it; omit it, also in the "
                "configuration or recipe."
            )
    return str(bundled_checkpoint()) if arguments.model == BUNDLED else str(arguments.model)


def _read_sources(
    arguments: DataArguments, texts: Sequence[str] | None, split: str
) -> tuple[list[DataSource], list["Dataset"]]:
    """Parse and load datasets."""
    labels = {"normal_labels": arguments.normal_labels, "anomalous_labels": arguments.anomalous_labels}
    options = MaskOptions.named(vars(arguments))
    sources = [DataSource.parse(text, split, mask_options=options, **labels) for text in texts or []]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(
            f"Several datasets have the same name: {', '.join(names)}; expected unique names. Set them with NAME=ROOT."
        )
    datasets = [source.load() for source in sources]
    for source, dataset in zip(sources, datasets):
        anomalous = sum(dataset["label"])
        logger.info("%s: %d normal images, %d anomalous", source.name, len(dataset) - anomalous, anomalous)
    return sources, datasets


def _random_tiny_clip(seed: int) -> CLIPModel:
    """Create a small CLIP (vision ViT-Tiny/16, 12 blocks) with random weights, reproducible from the seed."""
    set_seed(seed)
    text = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 4}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "patch_size": 16}
    return CLIPModel(CLIPConfig(projection_dim=192, text_config=text, vision_config=vision))


def backbone_of(arguments: ModelArguments, seed: int) -> tuple[str | CLIPModel, Any]:
    """
    Find the backbone of a training.

    Args:
        arguments ([`ModelArguments`]): the arguments.
        seed (`int`): random seed of a backbone with random weights.

    Returns:
        `tuple`: the folder or Hub id of the backbone, or the model, and its tokenizer if it is not in the same place.

    Raises:
        ValueError: if there is no backbone.
        OSError: if the package was installed without the bundled backbone.
    """
    clip = arguments.clip
    if clip is None:
        raise ValueError(
            "--clip is missing; expected the folder or Hub id of a CLIP checkpoint, or 'bundled'. To train a "
            "checkpoint further, set --model instead."
        )
    if clip == "random-tiny":
        logger.warning("The backbone has random weights: use it to try the command. Its results are meaningless.")
        return _random_tiny_clip(seed), None
    return (bundled_backbone(), state_word_tokenizer()) if clip == BUNDLED else (clip, None)


def _build_model(arguments: ModelArguments, seed: int) -> ViP2ClipForAnomalyDetection:
    if arguments.model is not None:
        checkpoint = checkpoint_of(arguments)
        set_seed(seed)
        return ViP2ClipForAnomalyDetection.from_pretrained(checkpoint)
    clip, tokenizer = backbone_of(arguments, seed)
    chosen: dict[str, Any] = {} if arguments.fgp_scaled is None else {"fgp_scaled": arguments.fgp_scaled}
    if arguments.feature_layers is not None:
        chosen["feature_layers"] = tuple(arguments.feature_layers)
    chosen.update(read_settings(arguments.set or []))
    set_seed(seed)
    return ViP2ClipForAnomalyDetection.from_clip(
        clip,
        tokenizer=tokenizer,
        variant=arguments.variant,
        image_size=arguments.image_size,
        top_k=arguments.top_k,
        **chosen,
    )


__all__ = ["PreparedTraining", "TrainingKind", "backbone_of", "checkpoint_of", "prepare_training", "run_training"]
