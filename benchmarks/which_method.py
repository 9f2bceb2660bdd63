"""Zero-shot, references, and training on own defects: what each adds, on datasets that the base never saw."""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from training.build_tiny.recipe import BATCH_SIZE, Recipe, TrainingSet, load_sets
from vip2clip_hf import (
    DataSource,
    ReferenceBank,
    ReferenceChoice,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
    ViP2ClipTrainer,
    ViP2ClipTrainingArguments,
    evaluate_model,
)
from vip2clip_hf.checkpoints.bundled import bundled_backbone
from vip2clip_hf.evaluation.reference_sets import evaluated_sets
from vip2clip_hf.models.small_text_tower import state_word_tokenizer


METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro", "pixel_f1")
REFERENCES = 16
RATE = 3e-4


def halves(labels: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Split images into two halves with as many anomalous images, at random."""
    order, found = np.random.default_rng(seed).permutation(len(labels)), ([], [])
    for label in (0, 1):
        rows = [int(row) for row in order if labels[row] == label]
        found[0].extend(rows[: len(rows) // 2])
        found[1].extend(rows[len(rows) // 2 :])
    return sorted(found[0]), sorted(found[1])


def train_further(
    model: ViP2ClipForAnomalyDetection,
    processor: ViP2ClipImageProcessor,
    sets: Sequence[TrainingSet],
    seed: int,
    steps: int,
) -> ViP2ClipForAnomalyDetection:
    """Train the adapters of a copy of a model further."""
    model = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ViP2ClipTrainingArguments(
            output_dir=folder, seed=seed, max_steps=steps, learning_rate=RATE, perception_learning_rate=RATE,
            per_device_train_batch_size=BATCH_SIZE, save_strategy="no", disable_tqdm=True,
            cache_features=f"{folder}/c",
        )  # fmt: skip
        dataset = concatenate_datasets([one.dataset for one in sets])
        provenance = [one.provenance for one in sets]
        ViP2ClipTrainer(model, arguments, processor, training_sets=provenance, train_dataset=dataset).train()
    return model.eval()


def benchmark_which_method(options: argparse.Namespace) -> None:
    """
    Print what references and training on own defects add to zero-shot results.

    Args:
        options (`argparse.Namespace`): `data`, `output`, `seeds` and `steps`.
    """
    folder, recipe = Path(options.output), Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    tower = folder / "tower"
    bundled_backbone().save_pretrained(tower)
    state_word_tokenizer().save_pretrained(tower)
    roots = {Path(root).name: root for root in options.data}
    sets = load_sets(list(roots.values()), folder)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for held_out, root in roots.items():
        rows = found[held_out] = {}
        for seed in options.seeds:
            model = recipe.create(str(tower), seed)
            others = {name: one for name, one in sets.items() if name != held_out}
            processor = recipe.train(model, others, seed, folder / "cache")
            own = sets[held_out].dataset
            first, second = (own.select(half) for half in halves(own["label"], seed))
            # Training on the own defects alone forgets other objects, which does not matter for one part.
            tuned = train_further(model, processor, [TrainingSet(held_out, first)], seed, options.steps)
            choice = ReferenceChoice((REFERENCES,), (seed,), own=False)
            evaluated = evaluated_sets([DataSource.parse(root)], choice, model, processor)
            drawn = next(one for one in evaluated if one.count == REFERENCES)
            for name, one in (("", model), ("trained on half of the defects", tuned)):
                for count in (0, REFERENCES):
                    banks: Any = drawn.references(one, processor) if count else None
                    key = ", ".join(filter(None, (name, f"{count} references" if count else ""))) or "zero-shot"
                    rows.setdefault(key, []).append(measure(one, processor, second, banks))
                    print(f"{held_out} {seed} {key}: {rows[key][-1]}", flush=True)
    print_table(found)


def measure(
    model: ViP2ClipForAnomalyDetection, processor: ViP2ClipImageProcessor, dataset: Any, banks: ReferenceBank | None
) -> dict[str, float]:
    """Evaluate a model. Returns the metrics in percent."""
    result = evaluate_model(model, processor, dataset, batch_size=16, references=banks)["mean"]
    return {name: 100 * result[name] for name in METRICS}


def print_table(found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """Print means and standard deviations over the seeds as a Markdown table."""
    print("| dataset | detector | image AUROC | pixel AUROC | AUPRO | pixel F1 |\n|---|---|---|---|---|---|")
    for held_out, rows in found.items():
        for name, results in rows.items():
            cells = []
            for metric in METRICS:
                values = [result[metric] for result in results]
                cells.append(f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}")
            print(f"| {held_out} | {name} | {' | '.join(cells)} |")


__all__ = ["benchmark_which_method"]
