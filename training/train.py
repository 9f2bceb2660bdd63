"""Train adapters on data sets with defects, evaluate them on others, write a complete checkpoint, publish it.

accelerate launch training/train.py training/configs/tiny.json --clip CLIP --train_data A --eval_data B C
"""

import logging
import sys
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from transformers import CLIPConfig, CLIPModel, set_seed

from arguments import ModelArguments, parse_arguments
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data import describe_training_set, find_training_overlap
from vip2clip_hf.data.sources import DataSource, concatenate
from vip2clip_hf.evaluation.runner import to_json, versions, without_nan
from vip2clip_hf.files import write_atomically
from vip2clip_hf.hub import check_push_access, check_target, push_checkpoint, save_checkpoint, write_card
from vip2clip_hf.trainer import ViP2ClipTrainer, ViP2ClipTrainingArguments


logger = logging.getLogger("train")


def random_tiny_clip(seed: int) -> CLIPModel:
    """A small CLIP (vision ViT-Tiny/16, 12 blocks) with random weights, the same for the same seed."""
    set_seed(seed)
    text = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 4}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "patch_size": 16}
    return CLIPModel(CLIPConfig(projection_dim=192, text_config=text, vision_config=vision))


def build_model(arguments: ModelArguments, seed: int) -> ViP2ClipForAnomalyDetection:
    if arguments.clip is None:
        raise ValueError("--clip is missing: name the folder or Hub id of a CLIP checkpoint, or 'random-tiny'.")
    clip = arguments.clip
    if clip == "random-tiny":
        logger.warning("The backbone has random weights: this shows that the script runs, its figures mean nothing.")
        clip = random_tiny_clip(seed)
    set_seed(seed)
    return ViP2ClipForAnomalyDetection.from_clip(
        clip,
        variant=arguments.variant,
        image_size=arguments.image_size,
        feature_layers=tuple(arguments.feature_layers),
        top_k=arguments.top_k,
    )


def read_sources(texts: list[str] | None, split: str) -> tuple[list[DataSource], list]:
    """Data sets by name, and what they hold."""
    sources = [DataSource.parse(text, split) for text in texts or []]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"Several data sets have the same name: {', '.join(names)}; give names, such as mine=ROOT.")
    datasets = [source.load() for source in sources]
    for source, dataset in zip(sources, datasets):
        anomalous = sum(dataset["label"])
        logger.info("%s: %d normal images, %d anomalous", source.name, len(dataset) - anomalous, anomalous)
    return sources, datasets


def recipe_of(model_arguments: ModelArguments, arguments: ViP2ClipTrainingArguments) -> dict[str, Any]:
    """What the model card says about the training."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    precision = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    recipe = {
        "variant": model_arguments.variant,
        "optimizer": f"Adam, {arguments.lr_scheduler_type} rates {arguments.learning_rate:g} (prompts, "
        f"image-conditioned adapter) and {arguments.perception_learning_rate:g} (fine-grained perception), weight "
        f"decay {arguments.weight_decay:g}",
        "batches": f"of {batch}, {arguments.num_train_epochs:g} epochs",
        "seed": arguments.seed,
        "precision": precision,
    }
    if arguments.cache_features is not None:
        recipe["features"] = f"computed once, kept in {arguments.cache_dtype}"
    if arguments.augmentation is not None:
        recipe["augmentation"] = ", ".join(arguments.augmentation)
    return recipe


def main(argv: list[str]) -> dict[str, Any]:
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    if arguments.process_index > 0:
        logging.getLogger().setLevel(logging.WARNING)  # once is enough
    if not data_arguments.train_data:
        raise ValueError("--train_data is missing: name the folder of the data set to train on.")
    train_sources, train_sets = read_sources(data_arguments.train_data, data_arguments.train_split)
    eval_sources, eval_sets = read_sources(data_arguments.eval_data, data_arguments.eval_split)
    check_target(arguments.output_dir)
    if arguments.push_to_hub:
        # Now, not after hours: whether there is a way in.
        if arguments.hub_model_id is None:
            raise ValueError("--push_to_hub needs --hub_model_id org/name.")
        check_push_access(arguments.hub_model_id, token=arguments.hub_token, private=arguments.hub_private_repo)
    model = build_model(model_arguments, arguments.seed)
    model.config.training_sets = [
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
    run = {"recipe": recipe_of(model_arguments, arguments), "versions": versions()}
    if first:
        # Before anything else that can fail.
        folder = save_checkpoint(
            model, image_processor, arguments.output_dir, adapters_only=data_arguments.adapters_only, run=run
        )
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    report = {
        "training_sets": model.config.training_sets,
        "losses": [entry["loss"] for entry in history],
        "history": history,
        "results": [],
        **run,
    }
    if eval_sources:
        trainer.evaluate()
        for source, dataset in zip(eval_sources, eval_sets):
            seen = find_training_overlap(model.config.training_sets, dataset, source.benchmark)
            result = {"name": source.name, "benchmark": source.benchmark, "trained_on": seen}
            report["results"].append({**result, **trainer.results[source.name]})
    if first:
        write_atomically(Path(folder, "results.json"), to_json(without_nan(report)))
        write_card(folder, {**run, "results": report["results"]})
        for result in report["results"]:
            show(result)
        print(f"Model and results in {folder}")
        if arguments.push_to_hub:
            published = push_checkpoint(
                folder, arguments.hub_model_id, token=arguments.hub_token, private=arguments.hub_private_repo
            )
            print(f"Published as {published}")
    return report


def show(result: dict[str, Any]):
    mean = result["mean"]
    names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "AUPRO"}
    print(f"{result['name']}: " + "   ".join(f"{title} {mean[name]:.3f}" for name, title in names.items()))
    for name, reason in mean["undefined"].items():
        print(f"  {name} is undefined: {reason}")
    for reason in result["trained_on"]:
        print(f"  not zero-shot: {reason}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
    except (HfHubHTTPError, OSError, RuntimeError, StrictDataclassError, ValueError) as error:
        sys.exit(f"Error: {error}")
