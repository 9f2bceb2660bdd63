"""The images of a data set, none of them opened, and the `datasets.Dataset` they become."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..models.vip2clip.decision_vip2clip import LABELS
from ..utils.extras import extra
from .benchmarks.benchmark import Benchmark
from .layouts.base import Layout, Reading, Row
from .report import CategoryReport, DataReport


if TYPE_CHECKING:
    from datasets import Dataset, Features


COLUMNS = ("image", "mask", "label", "category", "defect", "image_id")
NO_MASK = "anomalous images without a mask; they count in image metrics and the image loss only"


def features() -> "Features":
    """
    The schema of every data set: `image` and `mask` (`Image`, the mask null where there is none), `label` (0 normal, 1
    anomalous, null where unknown), `category`, `defect` (empty for normal images) and `image_id`.
    """
    with extra("data", "Reading a dataset"):
        import datasets

    text = datasets.Value("string")
    label = datasets.ClassLabel(names=list(LABELS))
    values = (datasets.Image(), datasets.Image(), label, text, text, text)
    return datasets.Features(dict(zip(COLUMNS, values)))


@dataclass
class DataIndex:
    """
    The images of a data set with labels and masks, none of them opened; see [`index_benchmark`], [`index_folder`].

    Args:
        root (`str`): the data root: the folder given, or the one folder inside that holds the data.
        layout (`Layout`): how it lies on disk.
        split (`str`): the split asked for.
        rows (`list[Row]`): its images.
        splits (`dict[str, int]`): images of every split.
        reading (`Reading`, *optional*): what the reader saw.
        benchmark (`Benchmark`, *optional*): the benchmark it was read as.
        source (`datasets.Dataset`, *optional*): where images are not files of a folder: the data set, row by row.
        whole (`bool`, defaults to `True`): whether all categories were asked for.
    """

    root: str
    layout: Layout
    split: str
    rows: list[Row]
    splits: dict[str, int]
    reading: Reading
    benchmark: Benchmark | None = None
    source: "Dataset | None" = None
    whole: bool = True

    @property
    def warnings(self) -> dict[str, list[str]]:
        """What is not as it should be, with examples."""
        found = dict(self.reading.warnings)
        anomalous = [row for row in self.rows if row.label == 1]
        without = [row.image for row in anomalous if row.mask is None]
        if without and (self.benchmark is None or self.benchmark.has_masks):
            found[NO_MASK] = without
        if self.reading.empty:
            found["categories without an image"] = self.reading.empty
        return found

    @cached_property
    def report(self) -> DataReport:
        """The report. The first call reads the names of all files below the root, to say which are not used."""
        categories: dict[str, CategoryReport] = {}
        for row in self.rows:
            part = categories.setdefault(row.category, CategoryReport())
            kind = "unlabelled" if row.label is None else LABELS[row.label]
            setattr(part, kind, getattr(part, kind) + 1)
            part.masks += row.label == 1 and row.mask is not None
        if self.benchmark is not None and self.split == "test":
            for category, part in categories.items():
                part.expected = self.benchmark.expected(category)
        ignored = {}
        if self.source is None:
            listing = self.reading.listing
            used = {path for row in self.reading.rows for path in (row.image, row.mask) if path is not None}
            ignored = listing.ignored(used)
            if listing.unreadable:
                ignored["folder that cannot be read"] = sorted(listing.unreadable)
        notes = list(self.reading.notes)
        if self.benchmark is not None and self.layout.name in self.benchmark.notes:
            notes.append(self.benchmark.notes[self.layout.name])
        return DataReport(
            root=self.root,
            layout=self.layout.name,
            layout_title=self.layout.title,
            split=self.split,
            splits=self.splits,
            categories=categories,
            ignored=ignored,
            warnings=self.warnings,
            notes=notes,
            benchmark=self.benchmark,
            whole=self.whole,
        )

    def to_dataset(self) -> "Dataset":
        """
        The images as `datasets.Dataset`, see [`features`]; each is opened when its row is read. Source, licence and
        citation of a benchmark stand in its `info`.
        """
        with extra("data", "Reading a dataset"):
            import datasets

        if self.source is not None:
            return self.source
        import pyarrow as pa

        schema = features()
        listing, rows = self.reading.listing, self.rows

        def images(paths: list[str | None]) -> pa.Array:
            absolute = pa.array([None if p is None else listing.absolute(p) for p in paths], pa.string())
            empty = pa.nulls(len(paths), pa.binary())
            return pa.StructArray.from_arrays([empty, absolute], ["bytes", "path"], mask=absolute.is_null())

        columns = [
            images([row.image for row in rows]),
            images([row.mask for row in rows]),
            pa.array([row.label for row in rows], pa.int64()),
            *(pa.array([getattr(row, name) for row in rows], pa.string()) for name in ("category", "defect", "image")),
        ]
        table = pa.table(dict(zip(COLUMNS, columns)), schema=schema.arrow_schema)
        info = datasets.DatasetInfo(features=schema)
        if self.benchmark is not None:
            info.description = f"{self.benchmark.title}; evaluated is {self.benchmark.evaluated}."
            info.homepage, info.citation = self.benchmark.source, self.benchmark.citation
            info.license = self.benchmark.licence or ""
        return datasets.Dataset(table, info=info)


def make_index(reading: Reading, layout: Layout, split: str, categories: Sequence[str] | None) -> DataIndex:
    _drop_shared_masks(reading)
    splits = dict(Counter(row.split for row in reading.rows))
    root = str(reading.listing.root)
    check_split(split, splits, reading.has_splits, root)
    rows = [row for row in reading.rows if row.split == split]
    names = list(dict.fromkeys(row.category for row in rows))
    if reading.benchmark is not None:
        names.sort(key=reading.benchmark.categories.index)
        reading.empty += [c for c in reading.benchmark.categories if c not in names and c not in reading.empty]
    else:
        reading.empty += [c for c in dict.fromkeys(r.category for r in reading.rows) if c not in names]
    if categories is not None:
        wanted = check_categories(categories, names, root)
        reading.empty = []
        names = [name for name in names if name in wanted]
    order = {name: position for position, name in enumerate(names)}
    rows = sorted((row for row in rows if row.category in order), key=lambda row: order[row.category])
    return DataIndex(root, layout, split, rows, splits, reading, reading.benchmark, whole=categories is None)


def _drop_shared_masks(reading: Reading):
    """A mask that fits two images, as 000.png does scratch/000.png and dent/000.png, is taken from both."""
    users = Counter(row.mask for row in reading.rows if row.mask is not None)
    for row in reading.rows:
        if row.mask is not None and users[row.mask] > 1:
            reading.warn("images whose mask fits other images as well, not used", f"{row.image} ({row.mask})")
            reading.listing.mark([row.mask], "mask that fits several images")
            row.mask = None


def check_split(split: str, splits: Mapping[str, int], has_splits: bool, root: str):
    if split not in splits:
        hint = "" if has_splits else " The layout has no splits: leave split out."
        raise ValueError(f"No images of the split {split!r} in {root!r}; found {', '.join(splits)}.{hint}")


def check_categories(categories: Sequence[str], found: Sequence[str], root: str) -> set[str]:
    if isinstance(categories, str):
        raise ValueError(f"categories is the text {categories!r}; expected a list, such as [{categories!r}].")
    unknown = sorted(set(categories) - set(found))
    if unknown or not categories:
        raise ValueError(f"No category {', '.join(unknown) or 'named'} in {root!r}; found {', '.join(found)}.")
    return set(categories)


__all__ = ["DataIndex", "features"]
