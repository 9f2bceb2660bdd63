"""Data sets by name and place, as command lines have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.extras import extra
from .benchmarks.registry import BENCHMARKS
from .collator import undecoded
from .loading import load_benchmark, load_folder


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class DataSource:
    """
    A data set with labels to train or evaluate on, and where it is.

    Args:
        name (`str`): what it is called in tables and folders.
        root (`str`): folder, table or Hub id.
        benchmark (`str`, *optional*): the benchmark of the paper it is.
        split (`str`, defaults to `"test"`): its split.
        categories (`tuple[str, ...]`, *optional*): only these.
    """

    name: str
    root: str
    benchmark: str | None = None
    split: str = "test"
    categories: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, text: str, split: str = "test", categories: Sequence[str] | None = None) -> "DataSource":
        """
        `"mvtec=path/to/MVTec"`, a benchmark in a folder; `"path/to/photos"`, one's own data; or `"screws=path"`, the
        same by a name of one's choice.

        Raises:
            ValueError: a name without a path.
        """
        categories = tuple(categories) if categories else None
        name, equals, root = text.partition("=")
        if not equals or Path(text).exists():
            return cls(Path(text).resolve().name or text, text, None, split, categories)
        if not root or not name:
            raise ValueError(f"{text!r}: expected NAME=ROOT, such as mvtec=path/to/MVTec.")
        benchmark = name.lower() if name.lower() in BENCHMARKS else None
        return cls(benchmark or name, root, benchmark, split, categories)

    @property
    def mask_threshold(self) -> int:
        """Mask values greater than this are anomalous."""
        return 0 if self.benchmark is None else BENCHMARKS[self.benchmark].mask_threshold

    def load(self, need_labels: bool = True) -> "Dataset":
        """
        Args:
            need_labels (`bool`, defaults to `True`): whether every image has to have a label.

        Raises:
            OSError, ValueError: see `load_folder` and `load_benchmark`; images without labels, where they are needed.
        """
        if self.benchmark is None:
            dataset = load_folder(self.root, self.split, self.categories)
        else:
            dataset = load_benchmark(self.benchmark, self.root, self.split, self.categories)
        unlabelled = sum(label is None for label in dataset["label"]) if need_labels else 0
        if unlabelled:
            raise ValueError(
                f"{self.root}: {unlabelled} of {len(dataset)} images have no label; expected one for every image, for "
                "instance the folders normal/ and anomalous/ (docs/data.md)."
            )
        return undecoded(dataset)


def concatenate(sources: Sequence[DataSource], datasets: Sequence["Dataset"]) -> "Dataset":
    """
    Several data sets as one. Every row keeps the mask threshold of its set (column `mask_threshold`); categories and
    image ids begin with the name of the set when there are several.

    Args:
        sources (`Sequence[DataSource]`): the sets.
        datasets (`Sequence[datasets.Dataset]`): what their `load()` gave.
    """
    with extra("data", "Joining datasets"):
        from datasets import concatenate_datasets

    parts = []
    for source, dataset in zip(sources, datasets):
        dataset = dataset.add_column("mask_threshold", [source.mask_threshold] * len(dataset))
        if len(sources) > 1:
            for column in ("category", "image_id"):
                values = [f"{source.name}/{value}" for value in dataset[column]]
                feature = dataset.features[column]
                dataset = dataset.remove_columns(column).add_column(column, values, feature=feature)
        parts.append(dataset)
    return concatenate_datasets(parts)


__all__ = ["DataSource", "concatenate"]
