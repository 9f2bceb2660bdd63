"""Write the tables and figures of a reproduction, and the record of how they were computed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..baselines.methods import untrained_texts
from ..checkpoints.bundled import BUNDLED
from ..evaluation.published import METHODS
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.files import write_atomically
from ..utils.serialization import to_json, without_nan
from ..utils.versions import merge_versions
from .chart_data import f1_gains, top_k_results
from .charts import write_gains, write_top_k
from .computing import Reproduction
from .efficiency_table import write_efficiency_table
from .examples import Example, read_examples
from .figure_files import write_figure
from .layouts import TableSet, table_layout
from .less_memory import is_out_of_memory
from .measured import CellKey, Measured
from .method import ViP2ClipMethod
from .pictures import draw_attention, draw_layers, draw_methods, method_maps
from .settings import FULL, STATIC_PROMPTS, model_fields
from .store import provenance
from .table_3 import measured_efficiency
from .work import measured_cells


PROVENANCE_FILE = "provenance.json"
NO_IMAGES = "no images: its datasets were not found, or its model is not trained"


def write_outputs(reproduction: Reproduction) -> dict[str, Any]:
    """
    Write the tables and figures that a reproduction was asked for, from the results in its folder.

    Args:
        reproduction ([`Reproduction`]): the reproduction.

    Returns:
        `dict`: see [`reproduce`]; also `tables`, the Markdown files among `files`.

    Raises:
        OSError: if a file cannot be written.
    """
    results = reproduction.results()
    cells = measured_cells(reproduction.work, results, reproduction.failures)
    writer = _Writer(reproduction, cells, results)
    files: list[Path] = []
    problems: list[str] = []
    for target in reproduction.targets:
        try:
            files += writer.write(target)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.filename:  # the disk, not a row
                raise
            text = "out of memory" if is_out_of_memory(error) else " ".join(str(error).split())
            problems.append(f"{target} failed: {text}")
    folder = reproduction.store.folder
    write_atomically(folder / PROVENANCE_FILE, to_json(_record(reproduction, results)))
    used = {name for unit in reproduction.work.units.values() for name in _datasets(unit)}
    used |= {dataset for _, dataset in reproduction.work.problems}
    used |= {name for _, dataset in reproduction.work.problems for name in _trained_on(reproduction, dataset)}
    missing = [name for name in reproduction.plan.datasets if name in used and reproduction.data.problem(name)]
    units = reproduction.work.units
    others = reproduction.store.others(set(units), set(results))
    problems = [
        *(f"{name}: {reproduction.data.problem(name)}" for name in missing),
        *writer.failures(),
        *problems,
    ]
    names = [path.name for path in files]
    return {
        "files": [*names, PROVENANCE_FILE],
        "tables": [name for name in names if name.endswith(".md")],
        "problems": problems,
        "downloads": reproduction.data.downloads(missing),
        "num_others": others,
    }


class _Writer:
    """
    Write tables and figures.

    Args:
        reproduction ([`Reproduction`]): the reproduction.
        cells (`Mapping[CellKey, Measured]`): results of the cells.
        results (`Mapping[str, dict]`): results of the evaluations by hash.
    """

    def __init__(
        self,
        reproduction: Reproduction,
        cells: Mapping[CellKey, Measured],
        results: Mapping[str, dict[str, Any] | None],
    ) -> None:
        self.reproduction, self.cells, self.folder = reproduction, cells, reproduction.store.folder
        self.plan, self.data = reproduction.plan, reproduction.data
        evaluated = [name for one in self.plan.protocol for name in one.evaluate]
        evaluated.sort(key=list(self.plan.datasets).index)
        self.sets: dict[str, TableSet] = {
            name: self.data.table_set(name) for name in dict.fromkeys([*evaluated, *self.plan.ablations])
        }
        self.evaluated = evaluated
        self.footer = _footer(reproduction, [one for one in results.values() if one])
        self.titles = {digest: unit.title for digest, unit in reproduction.work.units.items()}
        for unit in reproduction.work.units.values():
            self.titles |= {
                one.digest: f"{unit.title}, on {one.dataset}"
                for one in unit.evaluations
                if reproduction.failures.get(unit.key.digest) is None
            }
        self._models: dict[str, Any] = {}

    def failures(self) -> list[str]:
        """Describe failed trainings and evaluations. Those with the same sentence are one line."""
        found: dict[str, list[str]] = {}
        for digest, sentence in self.reproduction.failures.items():
            if digest in self.titles:
                found.setdefault(sentence, []).append(self.titles[digest])
        return [
            f"{titles[0]}{f' and {len(titles) - 1} more' if len(titles) > 1 else ''} {sentence}"
            for sentence, titles in found.items()
        ]

    def write(self, target: str) -> list[Path]:
        """Write a table or figure, and return its files."""
        kind, number = target.split()
        if target == "table 3":
            results, notes = measured_efficiency(self.reproduction)
            return write_efficiency_table(results, self.folder, footer=[*notes, *_plan_line(self.reproduction)])
        if kind == "table":
            return self._table(int(number))
        draw: dict[str, Callable[[], list[Path]]] = {
            "3": lambda: self._pictures(3), "4": self._methods, "5": self._gains, "6": self._top_k,
            "7": lambda: self._pictures(7),
        }  # fmt: skip
        return draw[number]()

    def _table(self, number: int) -> list[Path]:
        from .writing import write_table

        layout = table_layout(
            number,
            [self.sets[name] for name in self.evaluated],
            ablation_sets=[self.sets[name] for name in self.plan.ablations],
            state_words=["/".join(words) for words in self.plan.state_words],
            methods=self._methods_of_tables(),
        )
        chosen = self.plan.rows.get(str(number))
        cells = dict(self.cells)
        for key in layout.cell_keys():
            if chosen is not None and key.setting not in chosen and key not in cells:
                cells[key] = Measured(note="not among the rows of the plan")
        notes = untrained_texts(list(self.reproduction.detectors)) if self.plan.backbone == BUNDLED else ""
        footer = [notes, *self.footer] if notes and number in (1, 2) else self.footer
        return write_table(layout, cells, self.folder, footer=footer)

    def _methods_of_tables(self) -> list[str]:
        """Columns of Tables 1 and 2. For own data, methods without results have none."""
        own = list(self.reproduction.detectors)
        known = list(METHODS)
        if not any(self.sets[name].published_as for name in self.evaluated):
            known = [name for name in METHODS if name in own or name == METHODS[-1]]
        return [*known, *(name for name in own if name not in METHODS)]

    def _titles(self) -> dict[str, str]:
        return {name: one.shown_title for name, one in self.sets.items()}

    def _gains(self) -> list[Path]:
        names = [name for name in self.evaluated if self.sets[name].domain != "medical"]
        gains = f1_gains(self.cells, names, setting=FULL, base=STATIC_PROMPTS)
        return write_gains(gains, self.folder, self._titles())

    def _top_k(self) -> list[Path]:
        chosen = int(model_fields(self.plan, {}).get("top_k", 50))
        results = top_k_results(self.cells, self.plan.ablations, chosen, self.plan.top_k)
        return write_top_k(results, chosen, self.folder, self._titles())

    # Pictures

    def _model(self, setting: str, dataset: str) -> Any:
        digest = self.reproduction.work.models.get((setting, dataset), "")
        if digest not in self._models:
            self._models.clear()  # one at a time
            self._models[digest] = self.reproduction.model_of(setting, dataset)
        return self._models[digest]

    def _pipeline(self, dataset: str) -> AnomalyDetectionPipeline | None:
        method = self._model(FULL, dataset)
        if not isinstance(method, ViP2ClipMethod):
            return None
        found = method.detector
        return AnomalyDetectionPipeline(
            model=found.model, image_processor=found.image_processor, device=found.model.device
        )

    def _examples(self, dataset: str) -> list[Example]:
        if self.data.problem(dataset) is not None or self._model(FULL, dataset) is None:
            return []
        options = self.data.source(dataset).mask_options
        title = self.sets[dataset].shown_title
        return read_examples(self.data[dataset], self.plan.pictures, title=title, mask_options=options)

    def _pictures(self, number: int) -> list[Path]:
        """Figures 3 and 7. Each dataset has a figure of its own, because it has a model of its own."""
        written: list[Path] = []
        for name in self.plan.ablations:
            examples, pipeline = self._examples(name), self._pipeline(name)
            if not examples or pipeline is None:
                continue
            figure = draw_attention(pipeline, examples) if number == 3 else draw_layers(pipeline, examples)
            written += write_figure(figure, self.folder, number, suffix=name)
        if not written:
            raise ValueError(NO_IMAGES)
        return written

    def _methods(self) -> list[Path]:
        examples: list[Example] = []
        maps: dict[str, list[Any]] = {one: [] for one in (FULL, *self.reproduction.detectors)}
        for name in self.evaluated:
            found = self._examples(name)
            if not found:
                continue
            examples += found
            for setting, own in maps.items():
                detector = self._model(setting, name)
                own += ["not trained"] * len(found) if detector is None else method_maps(detector, found)
        if not examples:
            raise ValueError(NO_IMAGES)
        titled = {"ViP²-CLIP" if name == FULL else name: own for name, own in maps.items()}
        return write_figure(draw_methods(examples, titled), self.folder, 4)


def _datasets(unit: Any) -> list[str]:
    return [*unit.key.train, *(one.dataset for one in unit.evaluations)]


def _trained_on(reproduction: Reproduction, dataset: str) -> tuple[str, ...]:
    direction = reproduction.plan.direction(dataset)
    return direction.train if direction is not None else ()


def _plan_line(reproduction: Reproduction) -> list[str]:
    plan = reproduction.plan
    return [f"Plan {plan.name}: backbone {plan.backbone}, recipe {plan.recipe}. {PROVENANCE_FILE} has all settings."]


def _footer(reproduction: Reproduction, results: list[dict[str, Any]]) -> list[str]:
    """Lines below a table."""
    lines = _plan_line(reproduction)
    if results:
        merged = merge_versions([one["versions"] for one in results])
        texts = (
            f"{name} {' and '.join(value) if isinstance(value, list) else value}" for name, value in merged.items()
        )
        lines.append(f"Computed with {', '.join(texts)}.")
    return lines


def _record(reproduction: Reproduction, results: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """The record of all rows: settings, hashes, versions, commit, time and hardware."""
    rows = []
    for digest, unit in reproduction.work.units.items():
        done = reproduction.store.training(digest)
        rows.append(
            {
                "setting": unit.key.setting, "train": unit.key.train, "seed": unit.key.seed, "training": digest,
                "settings": unit.key.content, "targets": unit.targets, "trained": done,
                "failure": reproduction.failures.get(digest),
                "evaluations": [
                    {"dataset": one.dataset, "result": one.digest, **_brief(results.get(one.digest))}
                    for one in unit.evaluations
                ],
            }
        )  # fmt: skip
    return without_nan({"plan": reproduction.plan.to_dict(), **provenance(), "rows": rows})


def _brief(result: dict[str, Any] | None) -> dict[str, Any]:
    if result is None:
        return {"mean": None}
    return {name: result.get(name) for name in ("mean", "versions", "commit", "hardware", "time", "settings")}


__all__ = ["PROVENANCE_FILE", "write_outputs"]
