"""Describe what a reproduction would compute, with estimated times."""

import time
from typing import Any

from ..training.dry_run import plan_training
from ..utils.hardware import describe_hardware
from .computing import Reproduction
from .method import device_of
from .settings import FULL
from .table_3 import training_arguments
from .work import Unit


# Images of the measured evaluation.
MEASURED_IMAGES = 8


def describe_work(reproduction: Reproduction) -> dict[str, Any]:
    """
    List the rows of the tables and figures with their state and the time that is left.

    Times are those of finished trainings and evaluations in the folder. If there are none, a few steps and images are
    measured.

    Args:
        reproduction ([`Reproduction`]): the reproduction.

    Returns:
        `dict`: `rows` (each with `target`, `setting`, `dataset`, `status`, `seconds` and `shared_with`, the first
        target that needs the same trainings), `num_trainings` and `num_evaluations` that are left, `seconds` for all
        of them, `device`, `basis` (where the times come from) and `downloads`.

    Raises:
        OSError, RuntimeError, ValueError: if a step cannot be measured.
    """
    work, plan = reproduction.work, reproduction.plan
    left = reproduction.remaining()
    times = _Times(reproduction)
    costs = {unit.key.digest: times.of(unit) for unit in left}
    rows, seen = [], dict[tuple[str, str], str]()
    counted: set[str] = set()
    for need in reproduction.needs:
        cell = need.setting, need.dataset
        digests = [digest for digest, unit in work.units.items() if _belongs(unit, need.setting, need.dataset, work)]
        open_units = [digest for digest in digests if digest in costs]
        new = [digest for digest in open_units if digest not in counted]
        counted |= set(new)
        problem = work.problems.get(cell)
        rows.append(
            {
                "target": need.target, "setting": need.setting, "dataset": need.dataset,
                "status": (problem or "to do") if open_units or problem else "finished",
                "seconds": sum(costs[digest] for digest in new) if open_units else None,
                "shared_with": seen.get(cell, ""),
            }
        )  # fmt: skip
        seen.setdefault(cell, need.target)
    missing = [name for name in plan.datasets if reproduction.data.problem(name)]
    return {
        "rows": rows,
        "num_trainings": sum(reproduction.needs_training(unit) for unit in left),
        "num_evaluations": sum(len(reproduction.missing_evaluations(unit)) for unit in left),
        "seconds": sum(costs.values()),
        "device": describe_hardware(device_of(reproduction.device))["name"],
        "basis": times.basis,
        "downloads": reproduction.data.downloads(missing),
    }


def _belongs(unit: Unit, setting: str, dataset: str, work: Any) -> bool:
    """Whether a unit is part of a setting on a dataset."""
    if work.models.get((setting, dataset)) == unit.key.digest:
        return True
    digests = {digest for _, digest in work.cells.get((setting, dataset), ())}
    return any(one.digest in digests for one in unit.evaluations)


class _Times:
    """Seconds of trainings and evaluations, from finished ones or from a measurement."""

    def __init__(self, reproduction: Reproduction) -> None:
        self.reproduction = reproduction
        store, work = reproduction.store, reproduction.work
        trained = [done for digest in work.units if (done := store.training(digest)) is not None]
        self.step = _mean([done["seconds"] / done["steps"] for done in trained if done.get("steps")])
        results = [result for result in reproduction.results().values() if result is not None]
        self.image = _mean([one["seconds"] / one["num_images"] for one in results if one.get("num_images")])
        self.basis = "from finished rows"
        if not trained or not results:
            self._measure()

    def _measure(self) -> None:
        """Measure a few steps of the first training, and a few images."""
        reproduction = self.reproduction
        unit = next((one for one in reproduction.remaining() if one.detector is None and one.key.train), None)
        names = [] if unit is None else [one.dataset for one in unit.evaluations]
        name = next((one for one in names if reproduction.data.problem(one) is None), None)
        if name is None:
            self.basis = "nothing to measure"
            return
        plan = plan_training(*training_arguments(reproduction, name))
        self.step = plan["seconds"] / max(1, plan["num_steps"])
        method = reproduction.method(FULL)
        method.create(reproduction.plan.seeds[0])
        dataset = reproduction.data[name]
        rows = dataset.select(range(0, len(dataset), max(1, len(dataset) // MEASURED_IMAGES)))
        start = time.perf_counter()
        reproduction.evaluate(method, rows, name)
        self.image = (time.perf_counter() - start) / len(rows)
        self.basis = "measured on a few steps and images"

    def of(self, unit: Unit) -> float:
        """Estimate the seconds that a unit takes."""
        reproduction, found = self.reproduction, 0.0
        if reproduction.needs_training(unit) and unit.key.train and self.step is not None:
            found += self.step * reproduction.num_steps(unit)
        for one in reproduction.missing_evaluations(unit):
            found += (self.image or 0.0) * len(reproduction.data[one.dataset])
        return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


__all__ = ["describe_work"]
