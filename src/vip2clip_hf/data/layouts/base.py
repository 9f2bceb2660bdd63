"""Definitions shared by all layouts: rows, readings, the `Layout` class and names of classes and splits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing
from .words import ClassNames


SPLITS = ("train", "test", "validation")
# Reasons why a file is ignored, as shown in the report.
NO_CATEGORY = "files outside the categories of the benchmark"
ANOTHER_COPY = "files in another copy of the dataset"
UNKNOWN_TYPE = "files outside the class folders"
NO_TYPE = "images directly in train/ or test/"
NO_LABEL = "images without a label"
NOT_USED = "files not used by the benchmark"
SEVERAL_MASKS = "masks of images with several masks"
NO_CLASS = "images in folders for caches, results or unsorted images"


@dataclass
class Row:
    """
    One image of a dataset.

    Args:
        image (`str`): path relative to the data root, or the image id if the image is not a file.
        label (`int`, *optional*): 0 normal, 1 anomalous, None unknown.
        category (`str`): name of the category.
        mask (`str`, *optional*): path of the mask relative to the data root.
        defect (`str`, defaults to `""`): defect type. Empty for normal images or if unknown.
        split (`str`, defaults to `"test"`): split the image belongs to.
    """

    image: str
    label: int | None
    category: str
    mask: str | None = None
    defect: str = ""
    split: str = "test"


@dataclass
class Reading:
    """
    Input and results of the reader of a layout.

    Args:
        listing (`Listing`): files of the dataset.
        benchmark (`Benchmark`, *optional*): benchmark to read the dataset as.
        names (`ClassNames`): names of normal and anomalous folders and labels.
        rows (`list[Row]`): images found, of all splits.
        warnings (`dict[str, list[str]]`): affected paths, grouped by problem.
        notes (`list[str]`): remarks for the report.
        has_splits (`bool`, defaults to `True`): whether the layout has splits.
        empty (`list[str]`): categories without images.
        classes (`set[str]`): names of the class folders that were read, in lower case.
        labels_from_masks (`bool`, defaults to `False`): whether labels come from the contents of the masks.
        beside (`list[str]`): images in the folder passed by the user that are not in the folder of the dataset.
    """

    listing: Listing
    benchmark: Benchmark | None = None
    names: ClassNames = field(default_factory=ClassNames)
    rows: list[Row] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    has_splits: bool = True
    empty: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    labels_from_masks: bool = False
    beside: list[str] = field(default_factory=list)

    def warn(self, kind: str, *examples: str) -> None:
        """Record a problem and the affected paths."""
        self.warnings.setdefault(kind, []).extend(examples)

    def category(self, folder_name: str) -> str | None:
        """Name of the category with this folder name. None if the benchmark has no such category."""
        if self.benchmark is None:
            return folder_name
        if len(self.benchmark.categories) == 1:
            return self.benchmark.categories[0]
        return next((c for c in self.benchmark.categories if c.lower() == folder_name.lower()), None)

    def category_of(self, folder: str = "") -> str:
        """Category of a folder in a layout without category folders. Defaults to the name of the folder."""
        name = self.listing.folder_name(folder)
        return self.category(name) or name

    def add(self, image: str, label: int | None, category: str, masks: list[str] | None = None, **fields: Any) -> None:
        """Add an image. If several masks match, none is used because the right one is unknown."""
        masks = masks or []
        if len(masks) > 1:
            self.warn("images with several masks, none used", f"{image}: {', '.join(masks)}")
            self.listing.mark(masks, SEVERAL_MASKS)
        self.rows.append(Row(image, label, category, masks[0] if len(masks) == 1 else None, **fields))


@dataclass(frozen=True)
class Layout:
    """
    Arrangement of the files of a dataset.

    Args:
        name (`str`): value of the `layout` argument.
        title (`str`): short description.
        matches (`Callable[[Reading], bool]`): decides from file names whether a folder has this layout.
        read (`Callable[[Reading], None]`): adds the images of the dataset to a reading.
        expected (`str`): files of the layout, for error messages.
    """

    name: str
    title: str
    matches: Callable[[Reading], bool]
    read: Callable[[Reading], None]
    expected: str


__all__ = [
    "ANOTHER_COPY",
    "NOT_USED",
    "NO_CATEGORY",
    "NO_CLASS",
    "NO_LABEL",
    "NO_TYPE",
    "SEVERAL_MASKS",
    "SPLITS",
    "UNKNOWN_TYPE",
    "Layout",
    "Reading",
    "Row",
]
