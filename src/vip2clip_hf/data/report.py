"""What was found in a data set, for people and for machines."""

from dataclasses import dataclass, field
from typing import Any

from .benchmarks.benchmark import Benchmark


@dataclass
class CategoryReport:
    """
    Counts of one category.

    Args:
        normal, anomalous, unlabelled (`int`): images.
        masks (`int`): anomalous images that have a mask.
        expected (`tuple[int, int]`, *optional*): published normal and anomalous images, where known.
    """

    normal: int = 0
    anomalous: int = 0
    unlabelled: int = 0
    masks: int = 0
    expected: tuple[int, int] | None = None

    @property
    def differs(self) -> bool:
        return self.expected is not None and self.expected != (self.normal, self.anomalous)


@dataclass
class DataReport:
    """
    What was found in a data set; `str(report)` is for people, `report.to_dict()` for machines.

    Args:
        root (`str`): folder, file or Hub id that was read.
        layout, layout_title (`str`): layout recognised, its name and in words.
        split (`str`): the split that was asked for. splits (`dict[str, int]`): images of every split there is.
        categories (`dict[str, CategoryReport]`): counts of the split, by category.
        ignored (`dict[str, list[str]]`): files nothing was made of, by reason.
        warnings (`dict[str, list[str]]`): what is not as it should be, with examples.
        notes (`list[str]`): what to know about the layout.
        benchmark (`Benchmark`, *optional*): the benchmark it was read as.
        whole (`bool`): whether all categories were asked for.
    """

    root: str
    layout: str
    layout_title: str
    split: str
    splits: dict[str, int]
    categories: dict[str, CategoryReport]
    ignored: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    benchmark: Benchmark | None = None
    whole: bool = True

    @property
    def total(self) -> CategoryReport:
        """Counts over all categories; `expected` for a whole benchmark."""
        parts = self.categories.values()
        names = ("normal", "anomalous", "unlabelled", "masks")
        total = CategoryReport(**{name: sum(getattr(part, name) for part in parts) for name in names})
        if self.benchmark is not None and self.whole and self.split == "test":
            total.expected = self.benchmark.normal, self.benchmark.anomalous
        return total

    @property
    def differences(self) -> list[str]:
        """Where counts differ from the published ones."""
        named = [*self.categories.items()]
        if self.benchmark is not None and len(self.benchmark.categories) > 1:
            named.append(("total", self.total))
        return [
            f"{name}: {part.normal} normal and {part.anomalous} anomalous images, published are {part.expected[0]} "
            f"and {part.expected[1]}"
            for name, part in named
            if part.differs
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; of ignored files and warnings the number and up to 20 examples."""

        def examples(found: dict[str, list[str]]) -> dict[str, Any]:
            return {kind: {"count": len(paths), "examples": paths[:20]} for kind, paths in found.items()}

        def counts(part: CategoryReport) -> dict[str, Any]:
            return {**vars(part), "expected": None if part.expected is None else list(part.expected)}

        benchmark = self.benchmark
        return {
            "root": self.root,
            "layout": self.layout,
            "split": self.split,
            "splits": self.splits,
            "categories": {name: counts(part) for name, part in self.categories.items()},
            "total": counts(self.total),
            "differences": self.differences,
            "ignored": examples(self.ignored),
            "warnings": examples(self.warnings),
            "notes": self.notes,
            "benchmark": None
            if benchmark is None
            else {
                "name": benchmark.name,
                "title": benchmark.title,
                "evaluated": benchmark.evaluated,
                "counts_source": benchmark.counts_source,
                "mask_threshold": benchmark.mask_threshold,
                "licence": benchmark.licence,
                "citation": benchmark.citation,
                "source": benchmark.source,
            },
        }

    def __str__(self) -> str:
        lines = [f"{self.root}", f"  layout    {self.layout_title} ({self.layout})"]
        if self.benchmark is not None:
            lines.append(f"  benchmark {self.benchmark.title}; the paper evaluates {self.benchmark.evaluated}")
        others = ", ".join(f"{name} {count}" for name, count in self.splits.items() if name != self.split)
        lines.append(f"  split     {self.split}{f' (also there: {others})' if others else ''}")
        lines += ["", *self._table()]
        if self.differences:
            lines += ["", f"Differs from the published counts ({self.benchmark.counts_source}):"]
            lines += [f"  {difference}" for difference in self.differences]
        for title, found in (("Warnings:", self.warnings), ("Files ignored:", self.ignored)):
            if found:
                lines += ["", title]
                lines += [f"  {len(paths)} x {kind}: {examples(paths)}" for kind, paths in found.items()]
        if self.notes:
            lines += ["", "Notes:", *(f"  {note}" for note in self.notes)]
        if self.benchmark is not None:
            threshold = self.benchmark.mask_threshold
            lines += ["", f"Licence: {self.benchmark.licence or 'not established; ask its makers before you use it'}"]
            lines += [f"Cite: {self.benchmark.citation}", f"Source: {self.benchmark.source}"]
            if self.benchmark.has_masks:
                lines += [f"Mask values greater than {threshold} are anomalous (mask_threshold)."]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        header = ("category", "normal", "anomalous", "with mask", "unlabelled")
        named = [*self.categories.items(), *([("total", self.total)] if len(self.categories) > 1 else [])]
        cells = [header]
        for name, part in named:
            counts = (part.normal, part.anomalous, part.masks, part.unlabelled)
            cells.append((name, *map(str, counts)))
        if not self.total.unlabelled:
            cells = [row[:-1] for row in cells]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        return [
            "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
            for row in cells
        ]


def examples(paths: list[str], most: int = 3) -> str:
    return ", ".join(paths[:most]) + (", ..." if len(paths) > most else "")


__all__ = ["CategoryReport", "DataReport", "examples"]
