"""Stage 2: train on all datasets but one, and evaluate on the one left out, with several seeds."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.evaluation.evaluator import evaluate_detector
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.evaluation.recorder import EvaluationRecorder
from vip2clip_hf.evaluation.reference_sets import EvaluatedSet, ReferenceChoice, evaluated_sets
from vip2clip_hf.models.vip2clip.backbone_vip2clip import backbone_checksum, load_clip
from vip2clip_hf.models.vip2clip.configuration_tables_vip2clip import VARIANTS
from vip2clip_hf.utils.files import write_atomically

from .recipe import GENERATED, Recipe, load_sets, synthetic_set, without_examples
from .yardsticks import LocalContrast


RECIPE = Recipe()
RELEASE = replace(RECIPE, variant="release", config={})
PAPER = replace(RECIPE, variant="paper", config={})
# Fields in which the variants differ: values of the paper and of the authors' released code.
FIELDS: dict[str, tuple[Any, Any]] = {
    name: (getattr(ViP2ClipConfig(), name), value) for name, value in VARIANTS["release"].items()
}


def _with(recipe: Recipe, **fields: Any) -> Recipe:
    return replace(recipe, config={**recipe.config, **fields})


# Names of results in the files of the study.
SHIPPED, UNTRAINED, CONTRAST, PREVIOUS = "recipe", "untrained", LocalContrast.name, "another checkpoint"
ENTRIES: dict[str, Recipe] = {
    SHIPPED: RECIPE,
    "variant paper": PAPER,
    **{f"variant paper, {name} of release": _with(PAPER, **{name: value}) for name, (_, value) in FIELDS.items()},
    "variant release": RELEASE,
    **{f"variant release, {name} of paper": _with(RELEASE, **{name: value}) for name, (value, _) in FIELDS.items()},
    **{f"variant release, {size} pixels": replace(RELEASE, image_size=size) for size in (224, 256, 384, 448)},
    "variant release, without averaging": replace(RELEASE, average_from=None),
    "variant release, perception rate 1e-5": replace(RELEASE, rates=(3e-4, 1e-5)),
    "variant release, without synthetic images": replace(RELEASE, without=GENERATED),
    "variant release, without hazelnut_toy": replace(RELEASE, without="hazelnut_toy"),
    **{f"recipe, {size} pixels": replace(RECIPE, image_size=size) for size in (256, 384)},
    "recipe, 8 heads": _with(RECIPE, fgp_num_heads=8),
    "recipe, mean_logits": _with(RECIPE, image_score="mean_logits"),
    "recipe, top_k 40": _with(RECIPE, top_k=40),
    "recipe, initializer_range 0.005": _with(RECIPE, initializer_range=0.005),
    "recipe, feature layers 6, 9, 12": replace(RECIPE, layers=(6, 9, 12)),
    "recipe, feature layers 3, 6, 9": replace(RECIPE, layers=(3, 6, 9)),
    "recipe, 1 epoch": replace(RECIPE, epochs=1, average_from=0.5),
    "recipe, 3 epochs": replace(RECIPE, epochs=3),
    "recipe, 1e-3, 1 epoch": replace(RECIPE, rates=(1e-3, 1e-3), epochs=1, average_from=0.5),
    "recipe, 1e-4": replace(RECIPE, rates=(1e-4, 1e-4)),
    "recipe, three times the synthetic images": replace(RECIPE, synthetic=30),
    "recipe, without synthetic images": replace(RECIPE, without=GENERATED),
    "recipe, without hazelnut_toy": replace(RECIPE, without="hazelnut_toy"),
}
SEEDS = (111, 112, 113, 114, 115)
# Numbers of references.
REFERENCES = (1, 4, 16)
METRICS = ("image_auroc", "image_f1", "pixel_auroc", "pixel_aupro", "pixel_f1")
Results = dict[str, dict[str, Any]]


class Study:
    """
    Datasets and stored results of a study.

    Args:
        options (`argparse.Namespace`): options of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = Path(options.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tower = options.tower
        self._check_tower()
        self.roots = {Path(root).name: root for root in options.data or []}
        self.sets = load_sets(list(self.roots.values()), self.folder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _check_tower(self) -> None:
        """Refuse results that were computed with another tower."""
        found = backbone_checksum(load_clip(self.tower)[0].state_dict(), torch.float32)
        path = self.folder / "tower.txt"
        if not path.exists():
            write_atomically(path, found + "\n")
        elif path.read_text(encoding="utf-8").strip() != found:
            raise ValueError(f"{str(self.folder)!r} contains results of another tower; expected a new --output.")

    def train(self, recipe: Recipe, seed: int, held_out: str | None = None) -> ViP2ClipForAnomalyDetection:
        """Train adapters on all datasets but one."""
        model = recipe.create(self.tower, seed)
        sets = {name: one for name, one in self.sets.items() if name != held_out}
        if recipe.synthetic != RECIPE.synthetic:
            sets[GENERATED] = synthetic_set(self.folder, recipe.synthetic)
        recipe.train(model, sets, seed, self.folder / "cache")
        return model

    def evaluate(
        self, model: ViP2ClipForAnomalyDetection, held_out: str, seed: int, counts: tuple[int, ...] = REFERENCES
    ) -> Results:
        """Evaluate a model on a real dataset, zero-shot (`"0"`) and with numbers of references drawn with a seed."""
        model.to(self.device).eval()
        processor = ViP2ClipImageProcessor(size=model.config.image_size)
        source = DataSource.parse(self.roots[held_out])
        found = {}
        for one in evaluated_sets([source], ReferenceChoice(counts, (seed,), own=False), model, processor):
            found[str(one.count or 0)] = self._metrics(model, processor, one)
        return found

    def _metrics(
        self, model: ViP2ClipForAnomalyDetection, processor: ViP2ClipImageProcessor, one: EvaluatedSet
    ) -> dict[str, Any]:
        dataset = without_examples(one.dataset)
        banks, recorder = one.references(model, processor), EvaluationRecorder(len(dataset))
        result = evaluate_model(model, processor, dataset, batch_size=16, references=banks, recorder=recorder)
        thresholds = [category["pixel_f1_threshold"] for category in result["categories"].values()]
        return {
            **{name: result["mean"][name] for name in METRICS},
            "pixel_threshold": sum(thresholds) / len(thresholds),
            "scores": [round(float(score), 5) for score in recorder.scores()],
            "labels": list(dataset["label"]),
        }

    def stored(self, name: str, compute: Callable[[], Results] | None = None) -> Results | None:
        """Return the results of a step from its JSON file. Without the file, compute and store them."""
        path = self.folder / "results" / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            if compute is None:
                return None
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps(compute(), indent=1) + "\n")
            print(f"Wrote {path}", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def result(self, entry: str, held_out: str, seed: int, counts: tuple[int, ...]) -> None:
        """Train an entry without one dataset, and evaluate on that dataset."""
        train = self.train
        self.stored(
            file_of(entry, held_out, seed),
            lambda: self.evaluate(train(ENTRIES[entry], seed, held_out), held_out, seed, counts),
        )

    def untrained(self, held_out: str, seed: int) -> None:
        """Evaluate adapters that are not trained."""
        self.stored(
            file_of(UNTRAINED, held_out, seed),
            lambda: self.evaluate(RECIPE.create(self.tower, seed), held_out, seed, ()),
        )

    def contrast(self, held_out: str) -> None:
        """Evaluate local contrast."""
        detector = LocalContrast(RECIPE.image_size)
        self.stored(
            file_of(CONTRAST, held_out, 0),
            lambda: {"0": evaluate_detector(detector, self.sets[held_out].dataset)["mean"]},
        )

    def previous(self, checkpoint: str, held_out: str, seed: int) -> None:
        """Evaluate another checkpoint, which may have been trained on the dataset."""
        self.stored(
            file_of(PREVIOUS, held_out, seed),
            lambda: self.evaluate(ViP2ClipForAnomalyDetection.from_pretrained(checkpoint), held_out, seed),
        )


def file_of(entry: str, held_out: str, seed: int) -> str:
    """Return the name of the file with a result."""
    return f"{entry}, {held_out} left out, seed {seed}"


def run_study(options: argparse.Namespace) -> Study:
    """Run the part of the study that one process computes, and return the study."""
    part, slash, parts_text = options.part.partition("/")
    if not (slash and part.isdecimal() and parts_text.isdecimal() and 1 <= int(part) <= int(parts_text)):
        raise ValueError(f"--part is {options.part!r}; expected K/N with K from 1 to N, such as 1/2.")
    parts = int(parts_text)
    study = Study(options)
    trainings: list[Callable[[], object]] = []
    others: list[Callable[[], object]] = []
    for seed in options.seeds:
        for held_out in study.roots:
            for entry in options.entries or ENTRIES:
                counts = REFERENCES if entry == SHIPPED or entry.endswith("pixels") else ()
                trainings.append(lambda e=entry, h=held_out, s=seed, c=counts: study.result(e, h, s, c))
            others.append(lambda h=held_out, s=seed: study.untrained(h, s))
            if options.previous:
                others.append(lambda h=held_out, s=seed: study.previous(options.previous, h, s))
    others += [lambda h=held_out: study.contrast(h) for held_out in study.roots]
    tasks = [*trainings, *others]
    for number, task in enumerate(tasks):
        if number % parts == int(part) - 1:
            task()
    return study
