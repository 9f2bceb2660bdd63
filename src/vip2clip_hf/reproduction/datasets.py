"""The datasets of a plan: load them, write generated ones, and identify their contents."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..data.benchmarks.registry import BENCHMARKS
from ..data.collator import count_masks, undecoded
from ..data.provenance import describe_training_set, find_training_overlap
from ..data.sources import DataSource, concatenate
from ..data.synthetic.dataset import write_dataset
from ..data.synthetic.textures import ALL
from ..training.contents import content_hash
from .layouts import TableSet
from .plan_types import GENERATED, Plan
from .settings import digest_of


if TYPE_CHECKING:
    from datasets import Dataset

# Beginning of the problem of a dataset whose folder does not exist.
NOT_FOUND = "data not found"


class PlanDatasets:
    """
    The datasets of a plan. Each is loaded when it is first needed.

    Args:
        plan ([`Plan`]): the plan.
        folder (`pathlib.Path`): folder for generated datasets.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self._loaded: dict[str, Dataset] = {}
        self._problems: dict[str, str] = {}
        self.fingerprints: dict[str, str] = {}  # those that were needed: all files are read
        self._described: dict[str, dict[str, Any]] = {}
        self._overlaps: dict[tuple[tuple[str, ...], str], list[str]] = {}

    def problem(self, name: str) -> str | None:
        """
        Return why a dataset cannot be used.

        Args:
            name (`str`): name of the dataset.

        Returns:
            `str`, *optional*: `"data not found: ROOT"` or the error. `None` if the dataset is loaded.
        """
        if name not in self._loaded and name not in self._problems:
            try:
                self._loaded[name] = self._load(name)
            except (OSError, ValueError) as error:
                root = self.plan.datasets[name]
                found = root.startswith(GENERATED) or Path(root).exists()
                text = f"data not readable: {str(error).rstrip('.')}"
                self._problems[name] = text if found else f"{NOT_FOUND}: {root}"
        return self._problems.get(name)

    def __getitem__(self, name: str) -> "Dataset":
        if (problem := self.problem(name)) is not None:
            raise OSError(f"Dataset {name!r}: {problem}.")
        return self._loaded[name]

    def source(self, name: str) -> DataSource:
        """Return name and location of a dataset. The folder of a generated one is in the output."""
        if self.plan.datasets[name].startswith(GENERATED):
            # Other categories or sizes are other datasets, in a folder of their own.
            digest = digest_of([name, self.plan.datasets[name], self.plan.generated])
            return DataSource(name, str(self.folder / f"{name}-{digest[:8]}"))
        return self.plan.source(name)

    def reading(self, name: str) -> list[Any]:
        """Return how the images and masks of a dataset are read: as which benchmark, and the options of masks."""
        source = self.source(name)
        return [source.benchmark, asdict(source.mask_options)]

    def _load(self, name: str) -> "Dataset":
        root = self.plan.datasets[name]
        source = self.source(name)
        if root.startswith(GENERATED) and not Path(source.root).exists():
            categories = tuple(word.strip() for word in root.removeprefix(GENERATED).split(",") if word.strip())
            unknown = [word for word in categories if word not in ALL]
            if unknown or not categories:
                found = ", ".join(unknown) or "nothing"
                raise ValueError(f"datasets.{name} generates {found}; expected some of {', '.join(ALL)}.")
            self.folder.mkdir(parents=True, exist_ok=True)
            seed = 1 + sum(map(ord, name)) % 1000  # other images for other names
            with FileLock(f"{source.root}.lock"):
                if not Path(source.root).exists():  # another program may have written it
                    write_dataset(source.root, categories, seed=seed, **self.plan.generated)
        return source.load()

    def fingerprint(self, name: str) -> str:
        """
        Identify a dataset: image ids, labels, the contents of all image and mask files, and how they are read.

        Args:
            name (`str`): name of the dataset.

        Returns:
            `str`: hash. It does not depend on the place of the folder.

        Raises:
            OSError: if the dataset cannot be loaded.
        """
        if name not in self.fingerprints:
            dataset = self[name]
            rows = [
                [row["image_id"], row["category"], row["label"], _contents(row["image"]), _contents(row["mask"])]
                for row in undecoded(dataset)
            ]
            self.fingerprints[name] = digest_of([self.reading(name), rows])
        return self.fingerprints[name]

    def training_set(self, names: tuple[str, ...]) -> "tuple[Dataset, list[dict[str, Any]]]":
        """
        Join datasets to train on.

        Args:
            names (`tuple[str, ...]`): their names.

        Returns:
            `tuple[datasets.Dataset, list[dict]]`: all images, with their options for masks, and the entries of
            [`describe_training_set`].
        """
        sources = [self.source(name) for name in names]
        for name, source in zip(names, sources):
            if name not in self._described:
                self._described[name] = describe_training_set(self[name], name, source.benchmark, source.split)
        return concatenate(sources, [self[name] for name in names]), [self._described[name] for name in names]

    def overlap(self, train: tuple[str, ...], name: str) -> list[str]:
        """
        Find images of a dataset among those of training datasets. All images are opened once.

        Args:
            train (`tuple[str, ...]`): names of the training datasets.
            name (`str`): name of the dataset.

        Returns:
            `list[str]`: see [`find_training_overlap`].
        """
        if (train, name) not in self._overlaps:
            sets = self.training_set(train)[1]
            self._overlaps[train, name] = find_training_overlap(sets, self[name], self.source(name).benchmark)
        return self._overlaps[train, name]

    def table_set(self, name: str) -> TableSet:
        """
        Describe a dataset for the layout of the tables.

        Args:
            name (`str`): name of the dataset.

        Returns:
            [`TableSet`]: title, domain, and which metrics it has. Of a dataset that cannot be loaded, as published.
        """
        benchmark = BENCHMARKS.get(name.lower())
        if benchmark is not None:
            title, domain, count = benchmark.title, benchmark.domain, len(benchmark.categories)
            normal, masks = benchmark.normal > 0, benchmark.has_masks
        else:
            title, domain, count, normal, masks = name, "own", 1, True, True
        if self.problem(name) is None:
            dataset = self[name]
            count, normal, masks = len(set(dataset["category"])), 0 in dataset["label"], count_masks(dataset) > 0
        return TableSet(name, title, None if benchmark is None else benchmark.name, domain, normal, masks, count)

    def downloads(self, names: list[str]) -> list[str]:
        """
        Say where to get the benchmarks that were not found.

        Args:
            names (`list[str]`): names of datasets.

        Returns:
            `list[str]`: a line for each benchmark whose folder was not found.
        """
        lines = []
        for name in names:
            problem, benchmark = self.problem(name), BENCHMARKS.get(name.lower())
            if benchmark is not None and problem is not None and problem.startswith(NOT_FOUND):
                lines.append(f"Download {benchmark.title} to {self.plan.datasets[name]} from {benchmark.source}")
        return lines


def _contents(image: dict[str, Any] | None) -> str | None:
    """Hash of an image file. A file that cannot be read is reported by the evaluation."""
    try:
        return content_hash(image)
    except OSError:
        return "not readable"


__all__ = ["PlanDatasets"]
