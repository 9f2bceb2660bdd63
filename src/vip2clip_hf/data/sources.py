"""Labelled datasets as specified on the command line."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..utils.extras import extra
from .benchmarks.registry import BENCHMARKS
from .loading import load_benchmark, load_folder
from .targets import undecoded


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DataSource:
    """
    Name and location of a dataset for training or evaluation.

    Args:
        name (`str`): name of the dataset in tables and output folders.
        root (`str`): folder, table or Hub id.
        benchmark (`str`, *optional*): name of the benchmark to read it as.
        split (`str`, defaults to `"test"`): split to load.
        categories (`tuple[str, ...]`, *optional*): categories to load. Defaults to all.
        mask_options ([`MaskOptions`], *optional*): how to read masks. A threshold that is not set is that of the
            benchmark. For your own data, options that are not set are those of the image processor.
        normal_labels, anomalous_labels (`tuple[str, ...]`, *optional*): names of folders or labels of tables that mean
            normal and anomalous, see [`load_folder`]. Not used for benchmarks.
    """

    name: str
    root: str
    benchmark: str | None = None
    split: str = "test"
    categories: tuple[str, ...] | None = None
    mask_options: MaskOptions = field(default_factory=MaskOptions)
    normal_labels: tuple[str, ...] | None = None
    anomalous_labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.benchmark is not None:
            default = MaskOptions(threshold=BENCHMARKS[self.benchmark].mask_threshold)
            object.__setattr__(self, "mask_options", self.mask_options.over(default))

    @classmethod
    def parse(
        cls,
        text: str,
        split: str = "test",
        categories: Sequence[str] | None = None,
        mask_options: MaskOptions | None = None,
        normal_labels: Sequence[str] | None = None,
        anomalous_labels: Sequence[str] | None = None,
    ) -> "DataSource":
        """
        Parse a dataset argument of the command line.

        Args:
            text (`str`): `"path/to/photos"` for your own data, `"screws=path/to/photos"` for your own data with a
                name, or `"mvtec=path/to/MVTec"` for a benchmark.
            split (`str`, defaults to `"test"`): split to load.
            categories (`Sequence[str]`, *optional*): categories to load. Defaults to all.
            mask_options ([`MaskOptions`], *optional*): how to read masks.
            normal_labels, anomalous_labels (`Sequence[str]`, *optional*): names of folders or labels of tables that
                mean normal and anomalous.

        Returns:
            `DataSource`: the dataset, not loaded.

        Raises:
            ValueError: if the name or the path is missing.
        """
        selected = tuple(categories) if categories else None
        options = mask_options or MaskOptions()
        labels = tuple(normal_labels) if normal_labels else None, tuple(anomalous_labels) if anomalous_labels else None
        name, equals, root = text.partition("=")
        if not equals or Path(text).exists():
            return cls(Path(text).resolve().name or text, text, None, split, selected, options, *labels)
        if not root or not name:
            raise ValueError(f"Dataset {text!r} is incomplete; expected NAME=ROOT, such as mvtec=path/to/MVTec.")
        benchmark = name.lower() if name.lower() in BENCHMARKS else None
        if benchmark is not None:
            return cls(benchmark, root, benchmark, split, selected, options)
        if (similar := nearest_benchmark(name)) is not None:
            logger.warning(
                f"{name!r} is not the name of a benchmark, so {root!r} is read as your own data, with the mask "
                f"threshold of the image processor and without published results. For the benchmark, write "
                f"{similar}={root}."
            )
        return cls(name, root, None, split, selected, options, *labels)

    @property
    def mask_threshold(self) -> int | float | None:
        """Mask values greater than this are anomalous. `None` stands for the value of the image processor."""
        return self.mask_options.threshold

    def load(self, need_labels: bool = True) -> "Dataset":
        """
        Load the dataset.

        Args:
            need_labels (`bool`, defaults to `True`): whether all images must have a label.

        Returns:
            `datasets.Dataset`: one row per image, with the columns of [`features`]. Images and masks are not decoded.

        Raises:
            ImportError: if `datasets` is not installed.
            OSError: if the dataset does not exist or cannot be loaded.
            ValueError: if the dataset is invalid, see [`load_folder`] and [`load_benchmark`], or if a label is needed
                and missing.
        """
        if self.benchmark is None:
            dataset = load_folder(
                self.root, self.split, self.categories, normal_labels=self.normal_labels,
                anomalous_labels=self.anomalous_labels,
            )  # fmt: skip
        else:
            dataset = load_benchmark(self.benchmark, self.root, self.split, self.categories)
        unlabelled = sum(label is None for label in dataset["label"]) if need_labels else 0
        if unlabelled:
            raise ValueError(
                f"{self.root}: {unlabelled} of {len(dataset)} images have no label; expected a label for every image, "
                "for example from folders called normal/ and anomalous/, or from a column called label (see "
                "docs/data.md)."
            )
        return undecoded(dataset)


def nearest_benchmark(name: str) -> str | None:
    """
    Find the benchmark that a name probably means.

    Args:
        name (`str`): name, such as `"mvtek"` or `"kvasir-seg"`.

    Returns:
        `str`: name of the benchmark, or None.
    """
    forms: dict[str, str] = {}
    for benchmark in BENCHMARKS.values():
        for form in (benchmark.name, benchmark.title, *benchmark.folders):
            forms.setdefault(_plain(form), benchmark.name)
    plain = _plain(name)
    if plain in forms:
        return forms[plain]
    starts = [form for form in forms if len(form) > 3 and plain.startswith(form)]
    close = difflib.get_close_matches(plain, forms, 1, cutoff=0.75) if len(plain) > 3 else []
    return forms[[*starts, *close][0]] if starts or close else None


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def concatenate(sources: Sequence[DataSource], datasets: Sequence["Dataset"]) -> "Dataset":
    """
    Concatenate datasets.

    Args:
        sources (`Sequence[DataSource]`): description of each dataset.
        datasets (`Sequence[datasets.Dataset]`): the loaded datasets, in the same order.

    Returns:
        `datasets.Dataset`: all rows, with the options for masks of each dataset in the columns `mask_threshold`,
        `mask_channel`, `mask_invert`, `mask_orientation` and `keep_small_regions` (null for those of the image
        processor). If there are several datasets, categories and image ids start with the name of the dataset.

    Raises:
        ImportError: if `datasets` is not installed.
    """
    with extra("data", "Joining datasets"):
        from datasets import Value, concatenate_datasets

    parts = []
    for source, dataset in zip(sources, datasets):
        for column, value in source.mask_options.columns().items():
            kind = {"mask_threshold": "float64", "mask_invert": "bool", "keep_small_regions": "bool"}
            feature = Value(kind.get(column, "string"))
            dataset = dataset.add_column(column, [value] * len(dataset), feature=feature)
        if len(sources) > 1:
            for column in ("category", "image_id"):
                values = [f"{source.name}/{value}" for value in dataset[column]]
                feature = dataset.features[column]
                dataset = dataset.remove_columns(column).add_column(column, values, feature=feature)
        parts.append(dataset)
    return concatenate_datasets(parts)


__all__ = ["DataSource", "concatenate", "nearest_benchmark"]
