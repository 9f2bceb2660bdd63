"""Stage 2: choose the settings, leaving one real dataset out."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.models.vip2clip.backbone_vip2clip import backbone_checksum, load_clip
from vip2clip_hf.utils.files import write_atomically

from .common import STUDENT_BLOCKS, TEACHER_BLOCKS, wrap
from .training import Cached, evaluate_cached, generated_set, local_contrast, train_adapters


# What is chosen: on sets other than the one that is reported.
GENERATED_TRAIN = ("stripes", "grains", "weave", "waves", "materials", "objects", "prints")


GENERATED_HELD_OUT = ("brushed", "dots")


# Photos shown as examples, of hazelnut_toy: nothing is trained on them.
EXAMPLES = (
    "hazelnut/test/colour/02.jpg",
    "hazelnut/test/colour/14.jpg",
    "hazelnut/test/good/23.jpg",
    "hazelnut/test/good/13.jpg",
)


CANDIDATES = [
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


PER_SET = 120


SEEDS = (111, 112, 113)


FIGURES = ("image_auroc", "image_f1", "pixel_auroc", "pixel_aupro", "pixel_f1")


class Study:
    """Towers, data sets and their embeddings."""

    def __init__(self, options: argparse.Namespace):
        self.folder = Path(options.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tower, _ = load_clip(options.tower)
        self.teacher = None if options.teacher is None else load_clip(options.teacher)[0]
        self.real = {}
        for root in options.data or []:
            dataset = load_folder(root)
            kept = [n for n, name in enumerate(dataset["image_id"]) if not name.endswith(tuple(options.hold_out))]
            self.real[Path(root).name] = dataset.select(kept)
        self.generated = generated_set(self.folder, GENERATED_TRAIN, 12, 8, 0)
        self.held_out = generated_set(self.folder, GENERATED_HELD_OUT, 12, 8, 1)
        made_from = {
            "tower": backbone_checksum(self.tower.state_dict(), torch.float32),
            "data": {name: len(dataset) for name, dataset in self.real.items()},
            "choices": [CANDIDATES, EPOCHS, PER_SET, SEEDS, GENERATED_TRAIN, GENERATED_HELD_OUT],
        }
        made_from = json.loads(json.dumps(made_from))
        if self.remembered("study", lambda: made_from) != made_from:
            raise ValueError(f"{str(self.folder)!r} holds another study; choose another --output.")

    def model(self, tower: str, candidate: dict, seed: int) -> ViP2ClipForAnomalyDetection:
        set_seed(seed)
        clip, blocks = self.tower, candidate["layers"]
        if tower == "teacher":
            clip = self.teacher
            blocks = tuple(TEACHER_BLOCKS[STUDENT_BLOCKS.index(block)] for block in candidate["layers"])
        size = candidate["image_size"]
        top_k = max(1, round(15 * (size / 320) ** 2))
        # The paper's smoothing of eight pixels at 518: the same share of the image.
        options = {"variant": candidate["variant"], "top_k": top_k, "smoothing_sigma": 8.0 * size / 518}
        return wrap(clip, blocks, size, **options)

    def data(self, tower: str, candidate: dict) -> dict[str, Cached]:
        model = self.model(tower, candidate, 0)
        sets = {**self.real, "generated": self.generated, "held-out generated": self.held_out}
        return {name: Cached(model, dataset, self.folder / "cache", name) for name, dataset in sets.items()}

    def remembered(self, name: str, compute):
        """The result of a step of the study, computed once."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(compute(), indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))


def label_of(candidate: dict) -> str:
    slow, fast = candidate["rates"][1], candidate["rates"][0]
    layers = ", ".join(map(str, candidate["layers"]))
    return f"{candidate['variant']}, {candidate['image_size']} px, layers {layers}, rates {fast:g} and {slow:g}"


def search(study: Study) -> dict[str, dict]:
    """For every candidate and pair of real sets: trained on generated pictures and the first, tried on the second."""
    found = {}
    for number, candidate in enumerate(CANDIDATES):

        def pairs(candidate=candidate):
            data, results = study.data("tower", candidate), {}
            for trained in study.real:
                model = study.model("tower", candidate, 111)
                sets = [data["generated"], data[trained]]
                for epoch in train_adapters(model, sets, PER_SET, max(EPOCHS), candidate["rates"], 111):
                    if epoch in EPOCHS:
                        for tried in study.real:
                            if tried != trained:
                                figures = evaluate_cached(model, data[tried].thinned())
                                key = f"{trained} -> {tried}, {epoch}"
                                results[key] = {name: figures[name] for name in FIGURES}
                                shown = " ".join(f"{name} {figures[name]:.3f}" for name in FIGURES)
                                print(f"{label_of(candidate)}: {key}: {shown}", flush=True)
            return results

        found[number] = study.remembered(f"search-{number}", pairs)
    return found


def choose(study: Study, found: dict[str, dict], held_out: str) -> tuple[dict, int, float]:
    """The candidate and epochs that are best without a look at one set: mean of image and pixel AUROC and AUPRO over
    the pairs of the others."""
    scores = {}
    for number, results in found.items():
        for epoch in EPOCHS:
            values = [
                (figures["image_auroc"] + figures["pixel_auroc"] + figures["pixel_aupro"]) / 3
                for key, figures in results.items()
                if key.endswith(f", {epoch}") and held_out not in key
            ]
            scores[number, epoch] = float(np.mean(values))
    number, epoch = max(scores, key=scores.get)
    return CANDIDATES[number], epoch, scores[number, epoch]


def evaluate_study(options: argparse.Namespace):
    """Leave one real set out: chosen on the others, trained on the others and generated pictures, three seeds."""
    study = Study(options)
    found = search(study)
    table = {}
    for held_out in study.real:
        candidate, epochs, _ = choose(study, found, held_out)

        def figures(held_out=held_out, candidate=candidate, epochs=epochs):
            results = {"chosen": f"{label_of(candidate)}, {epochs} epochs"}
            for tower in ("tower", "teacher") if study.teacher is not None else ("tower",):
                data = study.data(tower, candidate)
                sets = [data["generated"], *(data[name] for name in study.real if name != held_out)]
                for what in (held_out, "held-out generated"):
                    results[f"{tower}, untrained, {what}"] = [
                        evaluate_cached(study.model(tower, candidate, seed).eval(), data[what]) for seed in SEEDS
                    ]
                    results[f"{tower}, {what}"] = []
                for seed in SEEDS:
                    model = study.model(tower, candidate, seed)
                    for _ in train_adapters(model, sets, PER_SET, epochs, candidate["rates"], seed):
                        pass
                    for what in (held_out, "held-out generated"):
                        results[f"{tower}, {what}"].append(evaluate_cached(model, data[what]))
                if tower == "tower":
                    for what in (held_out, "held-out generated"):
                        results[f"local contrast, {what}"] = [local_contrast(data[what], candidate["image_size"])]
            return results

        table[held_out] = study.remembered(f"held-out-{held_out}", figures)
    for held_out, results in table.items():
        print(f"{held_out}: {results['chosen']}")
        for what, seeds in results.items():
            if what != "chosen":
                means = {name: np.mean([one[name] for one in seeds]) for name in FIGURES}
                print(f"  {what:40s} " + " ".join(f"{name} {value:.3f}" for name, value in means.items()))


def figures_table(study: Study) -> str:
    """The study as a Markdown table: mean of the seeds, in percent."""
    headers = ("held out", "detector", "image AUROC", "image F1", "pixel AUROC", "AUPRO", "pixel F1")
    lines = [f"| {' | '.join(headers)} |", "|---|---|---|---|---|---|---|"]
    names = {
        "tower, {}": "**this tower, trained adapters**", "teacher, {}": "the same on the teacher",
        "tower, untrained, {}": "this tower, untrained adapters", "local contrast, {}": "local contrast",
    }  # fmt: skip
    for held_out in study.real:
        path = study.folder / f"held-out-{held_out}.json"
        results = json.loads(path.read_text(encoding="utf-8"))
        for what in (held_out, "held-out generated"):
            title = what if what == held_out else f"{', '.join(GENERATED_HELD_OUT)} (generated; without {held_out})"
            for key, name in names.items():
                seeds = results.get(key.format(what))
                if seeds:
                    values = [f"{100 * np.mean([one[figure] for one in seeds]):.1f}" for figure in FIGURES]
                    lines.append(f"| {title} | {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def choices(study: Study) -> str:
    """What was chosen for every set held out."""
    lines = []
    for held_out in study.real:
        results = json.loads((study.folder / f"held-out-{held_out}.json").read_text(encoding="utf-8"))
        lines.append(f"- {held_out} held out: {results['chosen']}")
    return "\n".join(lines)
