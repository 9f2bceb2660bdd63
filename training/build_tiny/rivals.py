"""Train the other methods for the bundled backbone, for `vip2clip compare` without own weights."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets

from vip2clip_hf import ViP2ClipImageProcessor, ViP2ClipTrainingArguments
from vip2clip_hf.baselines.methods import METHODS, create_model
from vip2clip_hf.baselines.training import BaselineTrainer
from vip2clip_hf.training.named_recipes import recipe_path
from vip2clip_hf.training.recipe import describe_recipe
from vip2clip_hf.utils.versions import versions

from .recipe import Recipe, load_sets


EPOCHS = Recipe().epochs
# Of the published recipes. Their image size, layers and numbers of epochs are for CLIP ViT-L/14@336px.
ARGUMENTS = ("learning_rate", "adam_beta1", "adam_beta2", "weight_decay", "per_device_train_batch_size", "seed")


def build_rivals(options: argparse.Namespace) -> None:
    """Train each method on the data of the bundled checkpoint, as often as it, and write the trained weights."""
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    sets = load_sets(options.data, folder)
    rows = datasets.concatenate_datasets([one.dataset for one in sets.values()])
    for key in options.methods or [key for key, method in METHODS.items() if method.trained]:
        target = Path(options.folder, key)
        if target.exists():
            raise OSError(f"{str(target)!r} exists; expected a new folder.")
        recipe = json.loads(recipe_path(key).read_text(encoding="utf-8"))
        model = create_model(key, "bundled", seed=recipe["seed"])
        fields: dict[str, Any] = {name: recipe[name] for name in ARGUMENTS if name in recipe}
        if model.caches_features:
            fields["cache_features"] = str(folder / "cache")
        processor = ViP2ClipImageProcessor(size=model.config.side)
        with tempfile.TemporaryDirectory() as run:
            args = ViP2ClipTrainingArguments(
                output_dir=run, num_train_epochs=EPOCHS, save_strategy="no", disable_tqdm=True, **fields
            )
            trainer = BaselineTrainer(
                model, args, processor, rows, training_sets=[one.provenance for one in sets.values()]
            )
            trainer.train()
            about = {"recipe": describe_recipe(trainer), "versions": versions()}
            trainer.write(target, adapters_only=True, run=about)
        size = (target / "model.safetensors").stat().st_size
        print(f"Wrote {target}: {size / 1e6:.2f} MB", flush=True)


__all__ = ["build_rivals"]
