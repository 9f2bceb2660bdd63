"""Run a training from its arguments: load the data, build the model, train, evaluate, and write the checkpoint."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import CLIPConfig, CLIPModel, SchedulerType, set_seed

from ..checkpoints.card import write_card
from ..checkpoints.saving import check_target, write_checkpoint
from ..data.provenance import describe_training_set, find_training_overlap
from ..data.sources import DataSource, concatenate
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.files import write_atomically
from ..utils.serialization import to_json, without_nan
from ..utils.versions import versions
from .arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
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
) -> dict[str, Any]:
    """
    Train adapters, evaluate them, and write a complete checkpoint with `results.json` to `arguments.output_dir`.

    Args:
        model_arguments ([`ModelArguments`]): the backbone and the settings of the model.
        data_arguments ([`DataArguments`]): the datasets. Without `eval_data`, the model is not evaluated.
        arguments ([`ViP2ClipTrainingArguments`]): the training arguments.
        before_training (`Callable`, *optional*): called after the data and the output folder are checked and before
            the model is loaded, for example to check the access to the Hub.

    Returns:
        `dict`: `training_sets`, `losses`, `history`, `recipe`, `versions` and `results`. `results` is a list with the
        output of `evaluate_model` for each dataset, extended by `name`, `benchmark` and `trained_on`.

    Raises:
        ValueError: if the backbone or the training dataset is missing, if several datasets have the same name, or if
            there is nothing to learn from the training data.
        OSError: if the data, the backbone or a checkpoint cannot be read, or if the output cannot be written.
        RuntimeError: if the loss is not finite.
    """
    if not data_arguments.train_data:
        raise ValueError("--train_data is missing; expected one or more datasets to train on.")
    train_sources, train_sets = _read_sources(data_arguments, data_arguments.train_data, data_arguments.train_split)
    eval_sources, eval_sets = _read_sources(data_arguments, data_arguments.eval_data, data_arguments.eval_split)
    folder = check_target(arguments.output_dir)
    if before_training is not None:
        before_training()
    model = _build_model(model_arguments, arguments.seed)
    model.provenance.training_sets = [
        describe_training_set(dataset, source.name, source.benchmark, source.split)
        for source, dataset in zip(train_sources, train_sets)
    ]
    image_processor = ViP2ClipImageProcessor(size=model.config.image_size)
    trainer = ViP2ClipTrainer(
        model,
        arguments,
        image_processor,
        train_dataset=concatenate(train_sources, train_sets),
        eval_dataset={s.name: concatenate([s], [dataset]) for s, dataset in zip(eval_sources, eval_sets)} or None,
    )
    resume = arguments.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    first = trainer.is_world_process_zero()
    run = {"recipe": _describe_recipe(model_arguments, arguments), "versions": versions()}
    if first:  # before the evaluation, which can fail
        write_checkpoint(model, image_processor, folder, adapters_only=data_arguments.adapters_only, run=run)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    report: dict[str, Any] = {
        "training_sets": model.provenance.training_sets,
        "losses": [entry["loss"] for entry in history],
        "history": history,
        "results": [],
        **run,
    }
    if eval_sources:
        trainer.evaluate()
        for source, dataset in zip(eval_sources, eval_sets):
            seen = find_training_overlap(model.provenance.training_sets, dataset, source.benchmark)
            result = {"name": source.name, "benchmark": source.benchmark, "trained_on": seen}
            report["results"].append({**result, **trainer.results[source.name]})
    if first:
        write_atomically(Path(folder, "results.json"), to_json(without_nan(report)))
        write_card(folder, {**run, "results": report["results"]})
    return report


def _read_sources(
    arguments: DataArguments, texts: Sequence[str] | None, split: str
) -> tuple[list[DataSource], list["Dataset"]]:
    """Parse and load datasets."""
    labels = {"normal_labels": arguments.normal_labels, "anomalous_labels": arguments.anomalous_labels}
    sources = [DataSource.parse(text, split, **labels) for text in texts or []]
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


def _build_model(arguments: ModelArguments, seed: int) -> ViP2ClipForAnomalyDetection:
    if arguments.clip is None:
        raise ValueError("--clip is missing; expected the folder or Hub id of a CLIP checkpoint, or 'random-tiny'.")
    clip: str | CLIPModel = arguments.clip
    if clip == "random-tiny":
        logger.warning("The backbone has random weights: use it to try the command. Its results are meaningless.")
        clip = _random_tiny_clip(seed)
    set_seed(seed)
    return ViP2ClipForAnomalyDetection.from_clip(
        clip,
        variant=arguments.variant,
        image_size=arguments.image_size,
        feature_layers=tuple(arguments.feature_layers),
        top_k=arguments.top_k,
    )


def _describe_recipe(model_arguments: ModelArguments, arguments: ViP2ClipTrainingArguments) -> dict[str, Any]:
    """Describe the training for the model card."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    schedule = SchedulerType(arguments.lr_scheduler_type).value
    precision = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    recipe = {
        "variant": model_arguments.variant,
        "optimizer": f"Adam, {schedule} learning rates {arguments.learning_rate:g} (prompts, "
        f"image-conditioned adapter) and {arguments.perception_learning_rate:g} (fine-grained perception), weight "
        f"decay {arguments.weight_decay:g}",
        "batches": f"{batch} images, {arguments.num_train_epochs:g} epochs",
        "seed": arguments.seed,
        "precision": precision,
    }
    if arguments.cache_features is not None:
        recipe["features"] = f"cached in {arguments.cache_dtype}"
    if arguments.augmentation is not None:
        recipe["augmentation"] = ", ".join(arguments.augmentation)
    return recipe


__all__ = ["run_training"]
