"""What a reproduction has to compute: the trainings and evaluations behind each table and figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.comparison import differences, metric_differences, triple
from ..utils.versions import SCORING_VERSION
from .datasets import PlanDatasets
from .measured import LEVELS, CellKey, Measured
from .plan_types import Plan
from .settings import (
    FULL,
    STATIC_PROMPTS,
    UNTRAINED,
    TrainingKey,
    digest_of,
    evaluation_digest,
    rows_of,
    top_k_setting,
    training_key,
)


TABLES = ("1", "2", "3", "4", "5", "6")
FIGURES = ("3", "4", "5", "6", "7")
TARGETS = (*(f"table {number}" for number in TABLES), *(f"figure {number}" for number in FIGURES))


def parse_targets(words: Sequence[str]) -> list[str]:
    """
    Parse the tables and figures to reproduce.

    Args:
        words (`Sequence[str]`): such as `["tables", "4", "5", "figures", "6"]`, `["table4"]` or `["all"]`.

    Returns:
        `list[str]`: such as `["table 4", "table 5", "figure 6"]`, in the order of `TARGETS`.

    Raises:
        ValueError: if a word is unknown.
    """
    found: set[str] = set()
    kind = "table"
    open_kind = None
    for word in (part for text in words for part in text.lower().replace(",", " ").split()):
        name = word.rstrip("0123456789").rstrip("s")
        number = word[len(word.rstrip("0123456789")) :]
        if word == "all":
            found |= set(TARGETS)
            continue
        if name in ("table", "figure"):
            if open_kind is not None:  # "tables" alone stands for all of them
                found |= {target for target in TARGETS if target.startswith(open_kind)}
            kind = name
            open_kind = None if number else name
            if not number:
                continue
        elif name:
            raise ValueError(f"{word!r} is not a table or figure; expected {', '.join(TARGETS)} or all.")
        if f"{kind} {number}" not in TARGETS:
            raise ValueError(f"{kind} {number} is not reproduced; expected {', '.join(TARGETS)} or all.")
        found.add(f"{kind} {number}")
        open_kind = None
    if open_kind is not None:
        found |= {target for target in TARGETS if target.startswith(open_kind)}
    if not found:
        raise ValueError(f"No table or figure is given; expected {', '.join(TARGETS)} or all.")
    return [target for target in TARGETS if target in found]


@dataclass(frozen=True)
class Need:
    """
    A setting that a table or figure needs on a dataset.

    Args:
        target (`str`): such as `"table 4"`.
        setting (`str`): name of a setting, or of a detector of the user.
        dataset (`str`): dataset to evaluate on.
        evaluated (`bool`): whether metrics are needed. Pictures only need the model, of the first seed.
    """

    target: str
    setting: str
    dataset: str
    evaluated: bool = True


def needs_of(
    plan: Plan, targets: Sequence[str], data: PlanDatasets, detectors: Sequence[str] = (), rivals: Sequence[str] = ()
) -> list[Need]:
    """
    List what tables and figures need.

    Args:
        plan ([`Plan`]): the plan.
        targets (`Sequence[str]`): result of [`parse_targets`].
        data ([`PlanDatasets`]): the datasets.
        detectors (`Sequence[str]`, *optional*): names of other detectors, in Tables 1 and 2 and Figure 4.
        rivals (`Sequence[str]`, *optional*): those of them that are methods of the plan, in Table 3.

    Returns:
        `list[Need]`: the needs, in the order of the targets.
    """
    evaluated = [name for one in plan.protocol for name in one.evaluate]
    evaluated.sort(key=list(plan.datasets).index)
    domains = {name: data.table_set(name).domain for name in evaluated}
    first = [name for name in evaluated if domains[name] != "medical"]
    medical = [name for name in evaluated if domains[name] == "medical"]
    settings: dict[str, Sequence[str]] = {
        number: plan.rows.get(number, rows_of(number, plan)) for number in ("4", "5", "6")
    }
    found: list[Need] = []
    for target in targets:
        kind, number = target.split()
        if target in ("table 1", "table 2"):
            names = first if number == "1" else medical
            found += [Need(target, setting, name) for setting in (FULL, *detectors) for name in names]
        elif target == "table 3":
            found += [Need(target, one, efficiency_dataset(plan), evaluated=False) for one in (FULL, *rivals)]
        elif kind == "table":
            found += [Need(target, setting, name) for setting in settings[number] for name in plan.ablations]
        elif number in ("3", "7"):
            found += [Need(target, FULL, name, evaluated=False) for name in plan.ablations]
        elif number == "4":
            found += [Need(target, one, name, False) for one in (FULL, *detectors) for name in evaluated]
        elif number == "5":
            found += [Need(target, setting, name) for setting in (FULL, STATIC_PROMPTS) for name in first]
        else:
            ks = [top_k_setting(count, plan) for count in plan.top_k]
            found += [Need(target, setting, name) for setting in ks for name in plan.ablations]
    return found


def efficiency_dataset(plan: Plan) -> str:
    """Return the dataset of Table 3."""
    return plan.efficiency["dataset"] or plan.protocol[0].evaluate[0]


@dataclass(frozen=True)
class Evaluation:
    """
    An evaluation of a trained model.

    Args:
        dataset (`str`): name of the dataset.
        digest (`str`): hash of its settings.
    """

    dataset: str
    digest: str


@dataclass
class Unit:
    """
    A training and the evaluations that need it.

    Args:
        key ([`TrainingKey`]): settings of the training.
        evaluations (`list[Evaluation]`): evaluations of the model.
        targets (`list[str]`): tables and figures that need it.
        detector (`str`, *optional*): name of another detector instead of ViP²-CLIP.
        kept (`bool`): whether the weights of that detector are kept.
        keep (`bool`): whether the model itself is needed.
    """

    key: TrainingKey
    evaluations: list[Evaluation] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    detector: str | None = None
    kept: bool = False
    keep: bool = False

    @property
    def title(self) -> str:
        """Setting, training datasets and seed."""
        train = f", trained on {' and '.join(self.key.train)}" if self.key.train else ""
        return f"{self.key.setting}{train}, seed {self.key.seed}"


@dataclass
class Work:
    """
    All trainings and evaluations of a reproduction.

    Args:
        units (`dict[str, Unit]`): trainings by hash.
        cells (`dict[tuple[str, str], list[tuple[int, str]]]`): seed and hash of each evaluation, by setting and
            dataset.
        models (`dict[tuple[str, str], str]`): hash of the training with the first seed, by setting and dataset.
        problems (`dict[tuple[str, str], str]`): why a setting cannot be evaluated on a dataset.
    """

    units: dict[str, Unit] = field(default_factory=dict)
    cells: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)
    models: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)


def plan_work(
    plan: Plan,
    needs: Sequence[Need],
    data: PlanDatasets,
    backbone: str,
    known: Mapping[str, str],
    detectors: Mapping[str, Mapping[str, Any]] | None = None,
) -> Work:
    """
    Turn needs into trainings and evaluations, each distinct one once.

    Args:
        plan ([`Plan`]): the plan.
        needs (`Sequence[Need]`): result of [`needs_of`].
        data ([`PlanDatasets`]): the datasets.
        backbone (`str`): checksum of the backbone.
        known (`Mapping[str, str]`): fingerprints of datasets in earlier runs. They are used for a dataset that is not
            there any more, so its finished results are still shown.
        detectors (`Mapping[str, Mapping[str, Any]]`, *optional*): settings of other detectors by name.

    Returns:
        [`Work`]: the work.
    """
    work, detectors = Work(), detectors or {}
    fingerprints: dict[str, str] = {}
    for need in needs:
        direction = plan.direction(need.dataset)
        cell = need.setting, need.dataset
        if direction is None:
            work.problems[cell] = f"the protocol does not evaluate on {need.dataset}"
            continue
        own = detectors.get(need.setting)
        trained = need.setting != UNTRAINED if own is None else bool(own.get("trained"))
        train = direction.train if trained else ()
        names = (need.dataset, *train)
        problems = [problem for name in names if (problem := data.problem(name)) is not None]
        if problems:
            work.problems[cell] = "; ".join(dict.fromkeys(problems))
        for name in names:
            if name not in fingerprints and (data.problem(name) is None or name in known):
                fingerprints[name] = data.fingerprint(name) if data.problem(name) is None else known[name]
        if any(name not in fingerprints for name in names):
            continue
        seeds = plan.seeds if need.evaluated else plan.seeds[:1]
        if own is not None and not trained:
            seeds = plan.seeds[:1]
        for seed in seeds:
            if own is None:
                key = training_key(plan, need.setting, train, seed, backbone, fingerprints)
            else:
                content = {"detector": need.setting, "settings": own.get("settings"), "seed": seed if trained else 0}
                content["train"] = [fingerprints[name] for name in train]
                key = TrainingKey(need.setting, train, seed, _json(content))
            kept = own is not None and trained and bool(own.get("kept"))
            unit = work.units.setdefault(
                key.digest, Unit(key, detector=None if own is None else need.setting, kept=kept)
            )
            unit.keep = unit.keep or not need.evaluated
            work.models.setdefault(cell, key.digest)
            if need.target not in unit.targets:
                unit.targets.append(need.target)
            if need.evaluated:
                used = {**plan.evaluation, "masks": data.reading(need.dataset)}
                digest = evaluation_digest(key.digest, need.dataset, fingerprints, used, SCORING_VERSION)
                if all(one.digest != digest for one in unit.evaluations):
                    unit.evaluations.append(Evaluation(need.dataset, digest))
                cells = work.cells.setdefault(cell, [])
                if (seed, digest) not in cells:
                    cells.append((seed, digest))
    return work


def measured_cells(
    work: Work, results: Mapping[str, dict[str, Any] | None], failures: Mapping[str, str]
) -> dict[CellKey, Measured]:
    """
    Collect the results of all cells. AUPRO of a benchmark is in the convention of the paper.

    Args:
        work ([`Work`]): the work.
        results (`Mapping[str, dict]`): result of each evaluation by hash, `None` if there is none.
        failures (`Mapping[str, str]`): why a training or an evaluation failed, by hash.

    Returns:
        `dict[CellKey, Measured]`: results of each setting, dataset and level, in percent.
    """
    found: dict[CellKey, Measured] = {}
    for (setting, dataset), cells in {**dict.fromkeys(work.problems, ()), **work.cells}.items():
        done = [(seed, result) for seed, digest in cells if (result := results.get(digest)) is not None]
        note = None
        if len(done) < len(cells) or not done:
            reasons = dict.fromkeys(failures[digest] for _, digest in cells if digest in failures)
            note = "; ".join(reasons) or work.problems.get((setting, dataset)) or "not computed yet"
        for level in LEVELS:
            triples: list[tuple[float, float, float]] = []
            for _, result in done:
                is_benchmark = result["benchmark"] is not None
                first, second, third = triple(result["mean"], level, as_published=is_benchmark)
                triples.append((first, second, third))
            found[CellKey(setting, dataset, level)] = Measured(
                tuple(triples), note, tuple(seed for seed, _ in done), _not_compared([one for _, one in done], level)
            )
    return found


def _not_compared(results: Sequence[dict[str, Any]], level: str) -> str | None:
    """Why results cannot be compared with the published ones."""
    found: dict[str, None] = {}
    for result in results:
        found |= dict.fromkeys(f"not zero-shot, {reason}" for reason in result.get("trained_on", ()))
        if result["benchmark"] is not None:
            found |= dict.fromkeys(differences(result, level))
            found |= dict.fromkeys(f"{name}: {text}" for name, text in metric_differences(result, level).items())
    return "; ".join(found) or None


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


__all__ = [
    "FIGURES", "TABLES", "TARGETS", "Evaluation", "Need", "Unit", "Work", "digest_of", "efficiency_dataset",
    "measured_cells", "needs_of", "parse_targets", "plan_work",
]  # fmt: skip
