"""Train adapters on one data set, evaluate them on another.

accelerate launch training/train.py training/configs/tiny.json --clip CLIP --train_root A --eval_root B
"""

import json
import logging
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from sklearn.metrics import roc_auc_score
from transformers import CLIPConfig, CLIPModel, Trainer, set_seed

from arguments import AdapterTrainingArguments, ModelArguments, parse_arguments
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data import ViP2ClipCollator, load_folder
from vip2clip_hf.hub import save_checkpoint


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
) -> Trainer:
    """A plain Trainer with one learning rate for prompts and ICA and another for the FGP (RELEASE: Adam, no decay)."""
    perception = [p for p in model.fine_grained_perception.parameters() if p.requires_grad]
    is_perception = {id(p) for p in perception}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in is_perception]
    groups = [
        {"params": others, "lr": arguments.learning_rate},
        {"params": perception, "lr": arguments.perception_learning_rate},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    pixel_labels = train_dataset is None or has_masks(train_dataset)
    return Trainer(
        model=model,
        args=arguments,
        data_collator=ViP2ClipCollator(image_processor, pixel_labels=pixel_labels),
        train_dataset=train_dataset,
        optimizers=(optimizer, None),
    )


def has_masks(dataset: Dataset) -> bool:
    """Whether any anomalous image has a mask. Reads no image."""
    columns = dataset.select_columns(["mask", "label"]).with_format("arrow")[:]
    return any(m.is_valid and y.as_py() == 1 for m, y in zip(columns["mask"], columns["label"]))


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN where there is only one class."""
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < labels.size else math.nan


def evaluate(trainer: Trainer, image_processor: ViP2ClipImageProcessor, dataset: Dataset) -> dict:
    """
    Image and pixel AUROC, per category and their mean, at the size of the model. Categories where one is undefined
    (NaN) are left out of its mean.
    """
    categories = np.asarray(dataset["category"])
    results = {}
    for category in sorted(set(categories.tolist())):
        part = dataset.select(np.flatnonzero(categories == category))
        trainer.data_collator = ViP2ClipCollator(image_processor)
        output = trainer.predict(part)
        _, scores, maps = output.predictions
        labels, masks, valid = output.label_ids
        results[category] = {
            "image_auroc": auroc(labels, scores),
            "pixel_auroc": auroc(masks[valid].ravel(), maps[valid].ravel()),
            "images": len(labels),
            "anomalous": int(labels.sum()),
        }
    mean = {}
    for name in ("image_auroc", "pixel_auroc"):
        defined = [r[name] for r in results.values() if not math.isnan(r[name])]
        mean[name] = float(np.mean(defined)) if defined else math.nan
    return {"mean": mean, "categories": results}


def main(argv: list[str]) -> dict:
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    if data_arguments.train_root is None:
        raise ValueError("--train_root is missing: name the folder of the data set to train on.")
    train_dataset = load_folder(data_arguments.train_root)
    eval_dataset = None if data_arguments.eval_root is None else load_folder(data_arguments.eval_root)
    model = build_model(model_arguments, arguments.seed)
    image_processor = ViP2ClipImageProcessor(size=model.config.image_size)

    trainer = build_trainer(model, image_processor, train_dataset, arguments)
    logger.info("Training on %d images of %s", len(train_dataset), data_arguments.train_root)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report = {"train_root": data_arguments.train_root, "eval_root": data_arguments.eval_root, "losses": losses}
    if eval_dataset is not None:
        report.update(evaluate(trainer, image_processor, eval_dataset))
    if trainer.is_world_process_zero():
        folder = save_checkpoint(model, image_processor, arguments.output_dir)
        staged = Path(folder, ".results.json.tmp")
        staged.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        os.replace(staged, Path(folder, "results.json"))
        if eval_dataset is not None:
            mean = report["mean"]
            print(f"image AUROC {mean['image_auroc']:.3f}   pixel AUROC {mean['pixel_auroc']:.3f}")
        print(f"Model and results in {folder}")
    return report


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
    except (OSError, StrictDataclassError, ValueError) as error:
        sys.exit(f"Error: {error}")
