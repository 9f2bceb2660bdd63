"""Train adapters on one data set, evaluate them on another.

accelerate launch training/train.py training/configs/tiny.json --clip CLIP --train_root A --eval_root B
"""

import logging
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig, CLIPModel, Trainer, set_seed

from arguments import AdapterTrainingArguments, ModelArguments, parse_arguments
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data import (
    ViP2ClipCollator,
    describe_training_set,
    get_benchmark,
    load_benchmark,
    load_folder,
)
from vip2clip_hf.data.collator import count_masks, undecoded
from vip2clip_hf.evaluation.evaluator import evaluate_model
from vip2clip_hf.evaluation.runner import to_json, without_nan
from vip2clip_hf.hub import check_target, save_checkpoint


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


def build_trainer(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    train_dataset: Dataset | None,
    arguments: AdapterTrainingArguments,
    mask_threshold: int = 0,
) -> Trainer:
    """A plain Trainer with one learning rate for prompts and ICA and another for the FGP (RELEASE: Adam, no decay)."""
    perception = [p for p in model.fine_grained_perception.parameters() if p.requires_grad]
    is_perception = {id(p) for p in perception}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in is_perception]
    groups = [
        {"params": others, "lr": arguments.learning_rate},
        {"params": perception, "lr": arguments.perception_learning_rate},
    ]
    if arguments.optim != AdapterTrainingArguments(output_dir=arguments.output_dir).optim:
        raise ValueError(f"--optim is {arguments.optim}; the adapters are trained with Adam, leave it out.")
    if arguments.label_smoothing_factor or arguments.remove_unused_columns:
        raise ValueError("--label_smoothing_factor and --remove_unused_columns have to be left out.")
    optimizer = torch.optim.Adam(
        [group for group in groups if group["params"]],
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
    )
    pixel_labels = train_dataset is None or count_masks(train_dataset) > 0
    return Trainer(
        model=model,
        args=arguments,
        data_collator=ViP2ClipCollator(image_processor, pixel_labels, mask_threshold),
        train_dataset=train_dataset,
        optimizers=(optimizer, None),
    )


def read_data(root: str, benchmark: str | None = None) -> Dataset:
    """A data set whose images are decoded by the image processor, which names the file when one cannot be read."""
    dataset = undecoded(load_folder(root) if benchmark is None else load_benchmark(benchmark, root))
    if None in dataset["label"]:
        raise ValueError(f"{root} has images without labels; expected normal and anomalous ones, see docs/data.md.")
    anomalous, masks = sum(dataset["label"]), count_masks(dataset)
    normal = len(dataset) - anomalous
    logger.info("%s: %d normal images, %d anomalous, %d of them with a mask", root, normal, anomalous, masks)
    if not normal or not anomalous:
        logger.warning("%s has images of one class only.", root)
    return dataset


def mask_threshold_of(benchmark: str | None) -> int:
    return 0 if benchmark is None else get_benchmark(benchmark).mask_threshold


def main(argv: list[str]) -> dict:
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    if data_arguments.train_root is None:
        raise ValueError("--train_root is missing: name the folder of the data set to train on.")
    train_benchmark, eval_benchmark = data_arguments.train_benchmark, data_arguments.eval_benchmark
    if eval_benchmark is not None and data_arguments.eval_root is None:
        raise ValueError("--eval_root is missing: name the folder of the benchmark to evaluate on.")
    train_dataset = read_data(data_arguments.train_root, train_benchmark)
    eval_dataset = None
    if data_arguments.eval_root is not None:
        eval_dataset = read_data(data_arguments.eval_root, eval_benchmark)
    check_target(arguments.output_dir)
    model = build_model(model_arguments, arguments.seed)
    train_name = train_benchmark or Path(data_arguments.train_root).resolve().name
    model.config.training_sets = [describe_training_set(train_dataset, train_name, train_benchmark)]
    image_processor = ViP2ClipImageProcessor(size=model.config.image_size)

    threshold = mask_threshold_of(train_benchmark)
    trainer = build_trainer(model, image_processor, train_dataset, arguments, threshold)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        # Before anything else that can fail.
        folder = save_checkpoint(
            model, image_processor, arguments.output_dir, adapters_only=data_arguments.adapters_only
        )
    report = {
        "train_set": train_name,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    if eval_dataset is not None:
        report["eval_set"] = eval_benchmark or Path(data_arguments.eval_root).resolve().name
        report.update(
            evaluate_model(
                model,
                image_processor,
                eval_dataset,
                batch_size=arguments.per_device_eval_batch_size,
                mask_threshold=mask_threshold_of(eval_benchmark),
                progress=not arguments.disable_tqdm,
            )
        )
    if trainer.is_world_process_zero():
        staged = Path(folder, ".results.json.tmp")
        staged.write_text(to_json(without_nan(report)), encoding="utf-8")
        os.replace(staged, Path(folder, "results.json"))
        if eval_dataset is not None:
            mean = report["mean"]
            names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "AUPRO"}
            print("   ".join(f"{title} {mean[name]:.3f}" for name, title in names.items()))
            for name, reason in mean["undefined"].items():
                print(f"{name} is undefined: {reason}")
        print(f"Model and results in {folder}")
    return report


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
    except (OSError, RuntimeError, StrictDataclassError, ValueError) as error:
        sys.exit(f"Error: {error}")
