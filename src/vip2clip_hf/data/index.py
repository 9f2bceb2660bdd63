"""Index of the images of a dataset, without opening them, and its conversion to a `datasets.Dataset`."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..models.vip2clip.arguments_vip2clip import LABELS
from ..models.vip2clip.image_listing_vip2clip import (
    NEEDS_HEIF,
    NO_EXTENSION,
    UNREADABLE,
    UNSUPPORTED,
    mask_folder_part,
)
from ..utils.extras import extra
from ..utils.text import encodable, is_utf8
from .benchmarks.benchmark import Benchmark
from .layouts.base import NO_LABEL, NOT_USED, SEVERAL_MASKS, Layout, Reading, Row
from .layouts.words import split_name
from .listing import MASK_WITHOUT_IMAGE, SYSTEM_FILE, Listing, has_image_extension
from .report import CategoryReport, DataReport


if TYPE_CHECKING:
    from datasets import Dataset, Features


logger = logging.get_logger(__name__)
COLUMNS = ("image", "mask", "label", "category", "defect", "image_id")
NO_MASK = "anomalous images without a mask, used for image metrics and image loss only"
EMPTY_CATEGORY = "categories without images"
OUTSIDE_IMAGES = "images outside the layout, left out"
SHARED_MASK = "masks that match several images"
UNUSED_MASKS = (SHARED_MASK, SEVERAL_MASKS)
BESIDE = "images beside the folder of the dataset"
# Layouts that list their images.
LISTS = ("meta", "table")
# Reasons for files that are not images of the dataset.
OTHER_FILES = (SYSTEM_FILE, NOT_USED)


def features() -> "Features":
    """
    Schema of every dataset.

    Returns:
        `datasets.Features`: `image` and `mask` (`Image`, mask null if missing), `label` (`ClassLabel`, 0 normal, 1
        anomalous, null if unknown), and the strings `category`, `defect` (empty for normal images) and `image_id`.

    Raises:
        ImportError: if `datasets` is not installed.
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
    Index of the images of a dataset with labels and masks, not opened. Returned by [`index_benchmark`] and
    [`index_folder`].

    Args:
        root (`str`): folder with the data (the folder passed by the user or its only dataset folder), file or Hub id.
        layout (`Layout`): layout of the dataset.
        split (`str`): selected split.
        rows (`list[Row]`): images of the split.
        splits (`dict[str, int]`): number of images in each available split.
        reading (`Reading`): record of the reader: all rows, warnings and notes.
        benchmark (`Benchmark`, *optional*): benchmark the dataset was read as.
        source (`datasets.Dataset`, *optional*): dataset with one row per image if images are not files in a folder.
        whole (`bool`, defaults to `True`): whether all categories are selected.
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

    @cached_property
    def ignored(self) -> dict[str, list[str]]:
        """Files that are not used, by reason. The first access lists all files below the root."""
        if self.source is not None:
            return {}
        listing = self.reading.listing
        used = {path for row in self.reading.rows for path in (row.image, row.mask) if path is not None}
        found = listing.ignored(used)
        if self.reading.beside:
            found.setdefault(BESIDE, []).extend(self.reading.beside)
        if UNREADABLE in listing.problems:
            found["unreadable folders"] = sorted(listing.problems[UNREADABLE])
        return found

    @cached_property
    def left_out(self) -> list[str]:
        """Images that are not used although they are in the folder of the dataset, without masks."""
        if self.layout.name in LISTS or self.benchmark is not None:
            return []
        known = (*OTHER_FILES, *UNUSED_MASKS, MASK_WITHOUT_IMAGE, UNSUPPORTED, NEEDS_HEIF, NO_EXTENSION, NO_LABEL)
        groups = [paths for reason, paths in self.ignored.items() if reason not in known]
        return [path for paths in groups for path in paths if has_image_extension(path)]

    @cached_property
    def warnings(self) -> dict[str, list[str]]:
        """
        Problems found while reading, and everything that was left out or guessed, with the affected paths.

        Images left out are found by listing all files below the root, except for benchmarks and for layouts with a
        list of the images (tables and meta.json). There, only the report counts the files that are not used.
        """
        found = dict(self.reading.warnings)
        anomalous = [row for row in self.rows if row.label == 1]
        without = [row.image for row in anomalous if row.mask is None]
        if without and (self.benchmark is None or self.benchmark.has_masks):
            found[NO_MASK] = without
        if self.reading.empty:
            found[EMPTY_CATEGORY] = self.reading.empty
        if self.source is None:
            if self.left_out:
                found[OUTSIDE_IMAGES] = self.left_out
            if self.benchmark is None and self.layout.name not in LISTS:
                for kind in (MASK_WITHOUT_IMAGE, UNSUPPORTED, NEEDS_HEIF, NO_EXTENSION):
                    if kind in self.ignored:
                        found[kind] = self.ignored[kind]
                if without and (hint := _masks_above(self.reading.listing)) is not None:
                    found["mask folders beside this folder, not read; pass the folder above to use them"] = [hint]
            for kind, paths in self.reading.listing.problems.items():
                found[kind] = sorted(paths)
        return found

    @cached_property
    def report(self) -> DataReport:
        """Report on the dataset. The first access lists all files below the root to find the ignored ones."""
        categories: dict[str, CategoryReport] = {}
        for row in self.rows:
            part = categories.setdefault(row.category, CategoryReport())
            kind = "unlabelled" if row.label is None else LABELS[row.label]
            setattr(part, kind, getattr(part, kind) + 1)
            part.masks += row.label == 1 and row.mask is not None
        if self.benchmark is not None and self.split == "test":
            for category, part in categories.items():
                part.expected = self.benchmark.expected(category)
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
            ignored=self.ignored,
            left_out=self.left_out,
            warnings=self.warnings,
            notes=notes,
            benchmark=self.benchmark,
            whole=self.whole,
        )

    def to_dataset(self) -> "Dataset":
        """
        Convert the index to a `datasets.Dataset`. An image is opened when its row is read.

        Returns:
            `datasets.Dataset`: one row per image, with the columns of [`features`]. For a benchmark, `info` has its
            source, licence and citation.

        Raises:
            ImportError: if `datasets` is not installed.
        """
        with extra("data", "Reading a dataset"):
            import datasets

        if self.source is not None:
            self._name(self.source.info)
            return self.source
        import pyarrow as pa

        schema = features()
        listing, rows = self.reading.listing, self.rows

        def images(paths: list[str | None]) -> pa.Array:
            found = [None if path is None else listing.absolute(path) for path in paths]
            # A path that is not UTF-8 cannot be stored as text, so the content of the file is stored.
            content = pa.array([None if p is None or is_utf8(p) else _content(p) for p in found], pa.binary())
            absolute = pa.array([None if path is None else encodable(path) for path in found], pa.string())
            return pa.StructArray.from_arrays([content, absolute], ["bytes", "path"], mask=absolute.is_null())

        odd = [path for row in rows for path in (row.image, row.mask) if path is not None and not is_utf8(path)]
        if odd:
            logger.warning(
                f"{len(odd)} file names in {listing.root} are not valid UTF-8, such as '{encodable(odd[0])}'; they "
                "are shown with escapes, and the files are kept in memory."
            )

        columns = [
            images([row.image for row in rows]),
            images([row.mask for row in rows]),
            pa.array([row.label for row in rows], pa.int64()),
            *(
                pa.array([encodable(getattr(row, name)) for row in rows], pa.string())
                for name in ("category", "defect", "image")
            ),
        ]
        table = pa.table(dict(zip(COLUMNS, columns)), schema=schema.arrow_schema)
        info = datasets.DatasetInfo(features=schema)
        if self.benchmark is not None:
            remark = self.benchmark.notes.get(self.layout.name, "")
            info.description = (
                f"{self.benchmark.title}; the paper evaluates {self.benchmark.evaluated}. {remark}".strip()
            )
            info.homepage, info.citation = self.benchmark.source, self.benchmark.citation
            info.license = self.benchmark.licence or ""
        self._name(info)
        return datasets.Dataset(table, info=info)

    def _name(self, info: Any) -> None:
        """Set the name and the split, which the trainer records. Not the path, which would be published."""
        name = os.path.basename(os.path.abspath(self.root)) if os.path.exists(self.root) else str(self.root)
        info.dataset_name = self.benchmark.name if self.benchmark is not None else name
        info.config_name = self.split


def _masks_above(listing: Listing) -> str | None:
    """Mask folder beside the root, such as ground_truth/ beside test/. None if there is none."""
    try:
        names = sorted(os.listdir(listing.root.resolve().parent))
    except OSError:
        return None
    return next((f"../{name}/" for name in names if mask_folder_part(name) == ""), None)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # reported when the image is opened, like other damaged files
        return b""


def make_index(reading: Reading, layout: Layout, split: str, categories: Sequence[str] | None) -> DataIndex:
    """Select a split and categories from the rows of a reading."""
    _drop_shared_masks(reading)
    splits = dict(Counter(row.split for row in reading.rows))
    root = str(reading.listing.root)
    if split not in splits:
        split = split_name(split) or split
    check_split(split, splits, reading.has_splits, root)
    rows = [row for row in reading.rows if row.split == split]
    names = list(dict.fromkeys(row.category for row in rows))
    if reading.benchmark is not None:
        names.sort(key=reading.benchmark.categories.index)
        reading.empty += [c for c in reading.benchmark.categories if c not in names and c not in reading.empty]
    else:
        reading.empty += [c for c in dict.fromkeys(r.category for r in reading.rows) if c not in names]
    if categories is not None:
        selected = check_categories(categories, names, root)
        reading.empty = []
        names = [name for name in names if name in selected]
    order = {name: position for position, name in enumerate(names)}
    rows = sorted((row for row in rows if row.category in order), key=lambda row: order[row.category])
    return DataIndex(root, layout, split, rows, splits, reading, reading.benchmark, whole=categories is None)


def _drop_shared_masks(reading: Reading) -> None:
    """Remove masks that match several images, such as 000.png for scratch/000.png and dent/000.png."""
    users = Counter(row.mask for row in reading.rows if row.mask is not None)
    for row in reading.rows:
        if row.mask is not None and users[row.mask] > 1:
            reading.warn("images that share a mask with another image, mask not used", f"{row.image} ({row.mask})")
            reading.listing.mark([row.mask], SHARED_MASK)
            row.mask = None


def check_split(split: str, splits: Mapping[str, int], has_splits: bool, root: str) -> None:
    """Raise a `ValueError` if the split does not exist."""
    if not splits:
        raise ValueError(f"{root!r} contains no images; expected at least one.")
    if split not in splits:
        hint = f" Choose it with split={next(iter(splits))!r}, or --split." if split == "test" else ""
        hint = hint if has_splits else " This layout has no splits; leave out split."
        raise ValueError(f"{root!r} has no split {split!r}; expected {' or '.join(splits)}.{hint}")


def check_categories(categories: Sequence[str], found: Sequence[str], root: str) -> set[str]:
    """Return the categories as a set. Raise a `ValueError` if there are none or one does not exist."""
    if isinstance(categories, str):
        raise ValueError(f"categories is the string {categories!r}; expected a list such as [{categories!r}].")
    if not categories:
        raise ValueError(f"categories is empty; expected some of {', '.join(found)}.")
    unknown = sorted(set(categories) - set(found))
    if unknown:
        raise ValueError(f"{root!r} has no category {', '.join(unknown)}; expected some of {', '.join(found)}.")
    return set(categories)


__all__ = ["DataIndex", "features"]
