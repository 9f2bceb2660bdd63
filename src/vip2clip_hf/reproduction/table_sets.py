"""Datasets of the paper's tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.benchmarks.registry import BENCHMARKS


# Titles of the rows where those of the registry differ from the paper.
PAPER_TITLES = {
    "ksdd": "KSDD",
    "dagm": "DAGM",
    "headct": "HeadCT",
    "br35h": "Brain35H",
    "isic": "ISIC",
    "endo": "Endo",
    "kvasir": "Kvasir",
}


@dataclass(frozen=True)
class TableSet:
    """
    Dataset of a table.

    Args:
        name (`str`): name of the dataset in the plan, as in [`CellKey`].
        title (`str`): its title. Benchmarks have the title of the paper.
        benchmark (`str`, *optional*): name of one of the 15 benchmarks. `None` for other data.
        domain (`"industrial"`, `"medical"` or `"own"`): Table 1 contains the datasets that are not medical, Table 2
            the medical ones.
        has_normal (`bool`): whether there are normal images, so image-level metrics are defined.
        has_masks (`bool`): whether there are masks, so pixel-level metrics are defined.
        num_categories (`int`, *optional*): number of categories evaluated. `None` if unknown: for a benchmark, all.

    Raises:
        ValueError: if the benchmark or the domain is unknown.
    """

    name: str
    title: str
    benchmark: str | None
    domain: str
    has_normal: bool = True
    has_masks: bool = True
    num_categories: int | None = None

    def __post_init__(self) -> None:
        if self.domain not in ("industrial", "medical", "own"):
            raise ValueError(f"domain is {self.domain!r}; expected 'industrial', 'medical' or 'own'.")
        if self.benchmark is None:
            return
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark is {self.benchmark!r}; expected None or one of {', '.join(BENCHMARKS)}.")
        if self.domain != BENCHMARKS[self.benchmark].domain:
            raise ValueError(
                f"domain of {self.benchmark!r} is {self.domain!r}; expected {BENCHMARKS[self.benchmark].domain!r}."
            )

    @property
    def published_as(self) -> str | None:
        """The benchmark, if all its categories are evaluated: only then the published results are of the same data."""
        if self.benchmark is None or self.num_categories not in (None, len(BENCHMARKS[self.benchmark].categories)):
            return None
        return self.benchmark

    @property
    def shown_title(self) -> str:
        """Title in the tables."""
        if self.benchmark is None:
            return self.title
        return PAPER_TITLES.get(self.benchmark, BENCHMARKS[self.benchmark].title)

    @property
    def shown_count(self) -> str:
        """Number of categories in the column C."""
        if self.benchmark is None:
            return "-" if self.num_categories is None else str(self.num_categories)
        total = len(BENCHMARKS[self.benchmark].categories)
        return str(total) if self.published_as else f"{self.num_categories} of {total}"

    def has(self, level: str) -> bool:
        """Whether the metrics of a level are defined."""
        return self.has_normal if level == "image" else self.has_masks


def set_titles(sets: Sequence[TableSet]) -> dict[str, str]:
    """
    Get the titles of datasets in a table.

    Args:
        sets (`Sequence[TableSet]`): the datasets.

    Returns:
        `dict[str, str]`: title by name of the dataset. It contains the name if two datasets have the same title.
    """
    titles = [one.shown_title for one in sets]
    return {
        one.name: f"{title} ({one.name})" if titles.count(title) > 1 else title for one, title in zip(sets, titles)
    }


__all__ = ["PAPER_TITLES", "TableSet", "set_titles"]
