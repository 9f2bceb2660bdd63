"""Stage 2: select the settings, leaving out one real dataset at a time."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import set_seed

from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.models.vip2clip.backbone_vip2clip import backbone_checksum, load_clip
from vip2clip_hf.utils.files import write_atomically

from .common import STUDENT_BLOCKS, TEACHER_BLOCKS, wrap
from .training import CachedDataset, evaluate_cached, local_contrast, synthetic_set, train_adapters


# Synthetic surfaces to train on, and synthetic surfaces for evaluation only.
SYNTHETIC_TRAIN = ("stripes", "grains", "weave", "waves", "materials", "objects", "prints")
SYNTHETIC_HELD_OUT = ("brushed", "dots")
# Name of the second dataset in the files of the study.
HELD_OUT = "held-out generated"
# Images of hazelnut_toy that are bundled as example photos. They are excluded from training.
EXAMPLES = (
    "hazelnut/test/colour/02.jpg",
    "hazelnut/test/colour/14.jpg",
    "hazelnut/test/good/23.jpg",
    "hazelnut/test/good/13.jpg",
)
# Settings to choose from. `rates` are the learning rates of prompts and image-conditioned adapter, and of fine-grained
# perception.
CANDIDATES: list[dict[str, Any]] = [
    {"variant": variant, "image_size": size, "rates": rates, "layers": layers}
    for variant, size, rates, layers in (
        ("release", 320, (1e-3, 1e-3), STUDENT_BLOCKS),
        ("paper", 320, (1e-3, 1e-3), STUDENT_BLOCKS),
        ("release", 320, (1e-3, 1e-5), STUDENT_BLOCKS),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS[1:]),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS[2:]),
        ("release", 224, (1e-3, 1e-3), STUDENT_BLOCKS[:3]),
    )
]
EPOCHS = (1, 2, 4)
# Maximum number of images per dataset and epoch.
PER_SET = 120
SEEDS = (111, 112, 113)
METRICS = ("image_auroc", "image_f1", "pixel_auroc", "pixel_aupro", "pixel_f1")


class Study:
    """
    Backbones, datasets, and the cached embeddings and results of a study.

    Args:
        options (`argparse.Namespace`): options of the command line.

    Raises:
        ValueError: if the output folder contains another study.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = Path(options.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tower, _ = load_clip(options.tower)
        self.teacher = None if options.teacher is None else load_clip(options.teacher)[0]
        self.real: dict[str, datasets.Dataset] = {}
        for root in options.data or []:
            dataset = load_folder(root)
            kept = [n for n, name in enumerate(dataset["image_id"]) if not name.endswith(tuple(options.hold_out))]
            self.real[Path(root).name] = dataset.select(kept)
        self.synthetic = synthetic_set(self.folder, SYNTHETIC_TRAIN, 12, 8, 0)
        self.held_out = synthetic_set(self.folder, SYNTHETIC_HELD_OUT, 12, 8, 1)
        inputs = {
            "tower": backbone_checksum(self.tower.state_dict(), torch.float32),
            "data": {name: len(dataset) for name, dataset in self.real.items()},
            "choices": [CANDIDATES, EPOCHS, PER_SET, SEEDS, SYNTHETIC_TRAIN, SYNTHETIC_HELD_OUT],
        }
        inputs = json.loads(json.dumps(inputs))
        if self.stored("study", lambda: inputs) != inputs:
            raise ValueError(f"{str(self.folder)!r} contains another study; expected a new or the same --output.")

    def model(self, tower: str, candidate: dict[str, Any], seed: int) -> ViP2ClipForAnomalyDetection:
        """Create a model with new adapters on the `"tower"` or the `"teacher"`."""
        set_seed(seed)
        clip, blocks = self.tower, candidate["layers"]
        if tower == "teacher":
            if self.teacher is None:
                raise ValueError("--teacher is missing; expected the folder or Hub id of a CLIP checkpoint.")
            clip = self.teacher
            blocks = tuple(TEACHER_BLOCKS[STUDENT_BLOCKS.index(block)] for block in candidate["layers"])
        size = candidate["image_size"]
        top_k = max(1, round(15 * (size / 320) ** 2))
        # Smoothing relative to the image size as in the paper: 8 pixels at 518.
        options = {"variant": candidate["variant"], "top_k": top_k, "smoothing_sigma": 8.0 * size / 518}
        return wrap(clip, blocks, size, **options)

    def data(self, tower: str, candidate: dict[str, Any]) -> dict[str, CachedDataset]:
        """Cache the embeddings of all datasets for a candidate."""
        model = self.model(tower, candidate, 0)
        sets = {**self.real, "synthetic": self.synthetic, HELD_OUT: self.held_out}
        return {name: CachedDataset(model, dataset, self.folder / "cache") for name, dataset in sets.items()}

    def stored(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the result of a step of the study from its JSON file. Compute it if the file does not exist."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(compute(), indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))


def label_of(candidate: dict[str, Any]) -> str:
    """Describe a candidate in one line."""
    prompts, perception = candidate["rates"]
    layers = ", ".join(map(str, candidate["layers"]))
    return (
        f"{candidate['variant']}, {candidate['image_size']} px, feature layers {layers}, "
        f"learning rates {prompts:g} and {perception:g}"
    )


def search(study: Study) -> dict[int, dict[str, dict[str, float]]]:
    """
    Evaluate all candidates on all pairs of real datasets.

    Each candidate is trained on the synthetic images and the first dataset of a pair, and evaluated on the second.

    Args:
        study (`Study`): the study.

    Returns:
        `dict[int, dict]`: for each index in `CANDIDATES`, the metrics by `"<trained> -> <evaluated>, <epoch>"`.
    """
    found = {}
    for number, candidate in enumerate(CANDIDATES):

        def pairs(candidate: dict[str, Any] = candidate) -> dict[str, dict[str, float]]:
            data, results = study.data("tower", candidate), {}
            for trained in study.real:
                model = study.model("tower", candidate, 111)
                sets = [data["synthetic"], data[trained]]
                for epoch in train_adapters(model, sets, PER_SET, max(EPOCHS), candidate["rates"], 111):
                    if epoch in EPOCHS:
                        for evaluated in study.real:
                            if evaluated != trained:
                                metrics = evaluate_cached(model, data[evaluated].subset())
                                key = f"{trained} -> {evaluated}, {epoch}"
                                results[key] = {name: metrics[name] for name in METRICS}
                                text = " ".join(f"{name} {metrics[name]:.3f}" for name in METRICS)
                                print(f"{label_of(candidate)}: {key}: {text}", flush=True)
            return results

        found[number] = study.stored(f"search-{number}", pairs)
    return found


def choose(found: dict[int, dict[str, dict[str, float]]], held_out: str) -> tuple[dict[str, Any], int, float]:
    """
    Select the best candidate without using one dataset.

    Args:
        found (`dict[int, dict]`): results of [`search`].
        held_out (`str`): name of the dataset that is not used.

    Returns:
        `tuple[dict, int, float]`: the candidate, the number of epochs and the criterion: the mean of image AUROC,
        pixel AUROC and AUPRO over all pairs of the other datasets.
    """
    scores: dict[tuple[int, int], float] = {}
    for number, results in found.items():
        for epoch in EPOCHS:
            values = [
                (metrics["image_auroc"] + metrics["pixel_auroc"] + metrics["pixel_aupro"]) / 3
                for key, metrics in results.items()
                if key.endswith(f", {epoch}") and held_out not in key
            ]
            scores[number, epoch] = float(np.mean(values))
    number, epoch = max(scores, key=lambda choice: scores[choice])
    return CANDIDATES[number], epoch, scores[number, epoch]


def evaluate_study(options: argparse.Namespace) -> None:
    """Select and train on all real datasets but one, and evaluate on the one left out, with three seeds."""
    study = Study(options)
    found = search(study)
    table = {}
    for held_out in study.real:
        candidate, epochs, _ = choose(found, held_out)

        def evaluate(
            held_out: str = held_out, candidate: dict[str, Any] = candidate, epochs: int = epochs
        ) -> dict[str, Any]:
            results: dict[str, Any] = {"chosen": f"{label_of(candidate)}, {epochs} epochs"}
            for tower in ("tower", "teacher") if study.teacher is not None else ("tower",):
                data = study.data(tower, candidate)
                sets = [data["synthetic"], *(data[name] for name in study.real if name != held_out)]
                for what in (held_out, HELD_OUT):
                    results[f"{tower}, untrained, {what}"] = [
                        evaluate_cached(study.model(tower, candidate, seed).eval(), data[what]) for seed in SEEDS
                    ]
                    results[f"{tower}, {what}"] = []
                for seed in SEEDS:
                    model = study.model(tower, candidate, seed)
                    for _ in train_adapters(model, sets, PER_SET, epochs, candidate["rates"], seed):
                        pass
                    for what in (held_out, HELD_OUT):
                        results[f"{tower}, {what}"].append(evaluate_cached(model, data[what]))
                if tower == "tower":
                    for what in (held_out, HELD_OUT):
                        results[f"local contrast, {what}"] = [local_contrast(data[what], candidate["image_size"])]
            return results

        table[held_out] = study.stored(f"held-out-{held_out}", evaluate)
    for held_out, results in table.items():
        print(f"{held_out}: {results['chosen']}")
        for what, seeds in results.items():
            if what != "chosen":
                means = {name: np.mean([metrics[name] for metrics in seeds]) for name in METRICS}
                print(f"  {what:40s} " + " ".join(f"{name} {value:.3f}" for name, value in means.items()))


def results_table(study: Study) -> str:
    """Format the results of the study as a Markdown table: means over the seeds, in percent."""
    headers = ("left out", "detector", "image AUROC", "image F1", "pixel AUROC", "AUPRO", "pixel F1")
    lines = [f"| {' | '.join(headers)} |", "|---|---|---|---|---|---|---|"]
    names = {
        "tower, {}": "**this tower, trained adapters**", "teacher, {}": "teacher, trained adapters",
        "tower, untrained, {}": "this tower, untrained adapters", "local contrast, {}": "local contrast",
    }  # fmt: skip
    for held_out in study.real:
        path = study.folder / f"held-out-{held_out}.json"
        results = json.loads(path.read_text(encoding="utf-8"))
        for what in (held_out, HELD_OUT):
            title = what if what == held_out else f"{', '.join(SYNTHETIC_HELD_OUT)} (synthetic; without {held_out})"
            for key, detector in names.items():
                seeds = results.get(key.format(what))
                if seeds:
                    values = [f"{100 * np.mean([metrics[name] for metrics in seeds]):.1f}" for name in METRICS]
                    lines.append(f"| {title} | {detector} | {' | '.join(values)} |")
    return "\n".join(lines)


def choices(study: Study) -> str:
    """List the selected settings for each dataset left out."""
    lines = []
    for held_out in study.real:
        results = json.loads((study.folder / f"held-out-{held_out}.json").read_text(encoding="utf-8"))
        lines.append(f"- {held_out} left out: {results['chosen']}")
    return "\n".join(lines)
