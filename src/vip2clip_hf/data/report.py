"""Report on the contents of a dataset, as text or as JSON."""

from dataclasses import dataclass, field
from typing import Any

from .benchmarks.benchmark import Benchmark


@dataclass
class CategoryReport:
    """
    Image counts of one category.

    Args:
        normal, anomalous, unlabelled (`int`): number of images with this label.
        masks (`int`): number of anomalous images with a mask.
        expected (`tuple[int, int]`, *optional*): published number of normal and anomalous images, if known.
    """

    normal: int = 0
    anomalous: int = 0
    unlabelled: int = 0
    masks: int = 0
    expected: tuple[int, int] | None = None

    @property
    def differs(self) -> bool:
        """Whether the counts differ from the published counts."""
        return self.expected is not None and self.expected != (self.normal, self.anomalous)


@dataclass
class DataReport:
    """
    Summary of a dataset. Use `str(report)` for text and `report.to_dict()` for JSON.

    Args:
        root (`str`): folder, file or Hub id of the dataset.
        layout, layout_title (`str`): name and description of the layout.
        split (`str`): split the report describes.
        splits (`dict[str, int]`): number of images in each available split.
        categories (`dict[str, CategoryReport]`): counts for each category of the split.
        ignored (`dict[str, list[str]]`): unused files, grouped by reason.
        left_out (`list[str]`): images among the unused files, without masks.
        warnings (`dict[str, list[str]]`): problems found while reading, with the affected paths.
        notes (`list[str]`): remarks about the layout.
        benchmark (`Benchmark`, *optional*): benchmark the dataset was read as.
        whole (`bool`, defaults to `True`): whether the report covers all categories.
    """

    root: str
    layout: str
    layout_title: str
    split: str
    splits: dict[str, int]
    categories: dict[str, CategoryReport]
    ignored: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    benchmark: Benchmark | None = None
    whole: bool = True

    @property
    def total(self) -> CategoryReport:
        """Counts over all categories. `expected` is set for the test split of a complete benchmark."""
        parts = self.categories.values()
        names = ("normal", "anomalous", "unlabelled", "masks")
        total = CategoryReport(**{name: sum(getattr(part, name) for part in parts) for name in names})
        if self.benchmark is not None and self.whole and self.split == "test":
            total.expected = self.benchmark.normal, self.benchmark.anomalous
        return total

    @property
    def differences(self) -> list[str]:
        """Differences from the published counts, one line per category."""
        parts = list(self.categories.items())
        if self.benchmark is not None and len(self.benchmark.categories) > 1:
            parts.append(("total", self.total))
        lines = []
        for name, part in parts:
            if part.expected is not None and part.differs:
                normal, anomalous = part.expected
                lines.append(
                    f"{name}: {part.normal} normal, {part.anomalous} anomalous (published: {normal} normal, "
                    f"{anomalous} anomalous)"
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types. Ignored files and warnings are cut to a count and up to 20 examples."""

        def shorten(groups: dict[str, list[str]]) -> dict[str, Any]:
            return {kind: {"count": len(paths), "examples": paths[:20]} for kind, paths in groups.items()}

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
            "num_left_out": len(self.left_out),
            "ignored": shorten(self.ignored),
            "warnings": shorten(self.warnings),
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
        benchmark = self.benchmark
        read = sum(self.splits.values())
        count = f": {len(self.left_out)} of {len(self.left_out) + read} images are left out" if self.left_out else ""
        lines = [f"{self.root}{count}", f"  layout     {self.layout_title} ({self.layout})"]
        if benchmark is not None:
            lines.append(f"  benchmark  {benchmark.title}; the paper evaluates {benchmark.evaluated}")
        others = ", ".join(f"{name} {count}" for name, count in self.splits.items() if name != self.split)
        lines.append(f"  split      {self.split}{f' (other splits: {others})' if others else ''}")
        lines += ["", *self._table()]
        if benchmark is not None and self.differences:
            lines += ["", f"Counts differ from the published counts (source: {benchmark.counts_source}):"]
            lines += [f"  {difference}" for difference in self.differences]
        for title, groups in (("Warnings:", self.warnings), ("Ignored files:", self.ignored)):
            if groups:
                lines += ["", title, *(f"  {summarize(kind, paths)}" for kind, paths in groups.items())]
        if self.notes:
            lines += ["", "Notes:", *(f"  {note}" for note in self.notes)]
        if benchmark is not None:
            licence = benchmark.licence or "not established; ask the authors before using the dataset"
            lines += ["", f"Licence: {licence}", f"Cite: {benchmark.citation}", f"Source: {benchmark.source}"]
            if benchmark.has_masks:
                lines.append(f"Mask threshold: values above {benchmark.mask_threshold} are anomalous.")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        header = ("category", "normal", "anomalous", "with mask", "unlabelled")
        parts = [*self.categories.items(), *([("total", self.total)] if len(self.categories) > 1 else [])]
        rows: list[tuple[str, ...]] = [header]
        for name, part in parts:
            rows.append((name, *map(str, (part.normal, part.anomalous, part.masks, part.unlabelled))))
        if not self.total.unlabelled:
            rows = [row[:-1] for row in rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return [
            "  " + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
            for row in rows
        ]


def summarize(kind: str, paths: list[str], most: int = 3) -> str:
    """One line about a group of paths: kind, count and the first `most` paths."""
    return f"{kind} ({len(paths)}): {', '.join(paths[:most])}{', ...' if len(paths) > most else ''}"


__all__ = ["CategoryReport", "DataReport", "summarize"]
