"""What every layout shares: rows, a reading in progress, the `Layout` itself, and folder names with a meaning."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing


NORMAL_NAMES = frozenset({"good", "ok", "normal", "nominal"})
ANOMALOUS_NAMES = frozenset({"anomalous", "anomaly", "abnormal", "bad", "ko", "ng", "defect", "defective", "damaged"})
SPLITS = ("train", "test")
NO_CATEGORY = "folder of no known category"
ANOTHER_COPY = "another copy of the images"
UNKNOWN_TYPE = "folder whose name says neither normal nor anomalous"
NO_TYPE = "image outside the folders of normal and anomalous images"
NO_LABEL = "image without a label"
NOT_USED = "not used by the benchmark"


@dataclass
class Row:
    """One image. Paths are relative to the root of the index; label 0 normal, 1 anomalous, None unknown."""

    image: str
    label: int | None
    category: str
    mask: str | None = None
    defect: str = ""
    split: str = "test"


@dataclass
class Reading:
    """What a reader works on and what it found out."""

    listing: Listing
    benchmark: Benchmark | None = None
    rows: list[Row] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    has_splits: bool = True
    empty: list[str] = field(default_factory=list)

    def warn(self, kind: str, *examples: str):
        self.warnings.setdefault(kind, []).extend(examples)

    def category(self, folder_name: str) -> str | None:
        """Name of a category from that of its folder; None when it is none of the benchmark's."""
        if self.benchmark is None:
            return folder_name
        if len(self.benchmark.categories) == 1:
            return self.benchmark.categories[0]
        return next((c for c in self.benchmark.categories if c.lower() == folder_name.lower()), None)

    def add(self, image: str, label: int | None, category: str, masks: list[str] | None = None, **more):
        """Add an image. Of several masks none is taken: which one is right cannot be told."""
        masks = masks or []
        if len(masks) > 1:
            self.warn("images with more than one mask, none of them used", f"{image}: {', '.join(masks)}")
            self.listing.mark(masks, "one of several masks of an image")
        self.rows.append(Row(image, label, category, masks[0] if len(masks) == 1 else None, **more))


@dataclass(frozen=True)
class Layout:
    """
    A way data lie on disk.

    Args:
        name (`str`): as `layout=` takes it.
        title (`str`): in words.
        matches: whether a folder is laid out so, from the names in it.
        read (*optional*): finds the rows.
        expected (`str`): the tree, for error messages.
    """

    name: str
    title: str
    matches: Callable[[Listing, Benchmark | None], bool]
    read: Callable[[Reading], None] | None
    expected: str


def is_normal_name(name: str) -> bool:
    return name.lower() in NORMAL_NAMES


__all__ = [
    "ANOMALOUS_NAMES",
    "ANOTHER_COPY",
    "NORMAL_NAMES",
    "NOT_USED",
    "NO_CATEGORY",
    "NO_LABEL",
    "NO_TYPE",
    "SPLITS",
    "UNKNOWN_TYPE",
    "Layout",
    "Reading",
    "Row",
    "is_normal_name",
]
