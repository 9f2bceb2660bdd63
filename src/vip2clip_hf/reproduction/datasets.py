"""The datasets of a plan: load them, write generated ones, and identify their contents."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..data.benchmarks.registry import BENCHMARKS
from ..data.collator import count_masks, undecoded
from ..data.provenance import describe_training_set
from ..data.sources import DataSource, concatenate
from ..data.synthetic.dataset import write_dataset
from ..data.synthetic.textures import ALL
from .layouts import TableSet
from .plan import GENERATED, Plan
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
        self._fingerprints: dict[str, str] = {}
        self._described: dict[str, dict[str, Any]] = {}

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
            return DataSource(name, str(self.folder / name))
        return self.plan.source(name)

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
            with FileLock(self.folder / f"{name}.lock"):  # another program may write it at the same time
                if not Path(source.root).exists():
                    write_dataset(source.root, categories, seed=seed, **self.plan.generated)
        return source.load()

    def fingerprint(self, name: str) -> str:
        """
        Identify the contents of a dataset: image ids, labels, and the sizes of the image and mask files.

        Args:
            name (`str`): name of the dataset.

        Returns:
            `str`: hash. It does not depend on the place of the folder.

        Raises:
            OSError: if the dataset cannot be loaded.
        """
        if name not in self._fingerprints:
            dataset = self[name]
            rows = [
                [row["image_id"], row["category"], row["label"], _size(row["image"]), _size(row["mask"])]
                for row in undecoded(dataset)
            ]
            self._fingerprints[name] = digest_of(rows)
        return self._fingerprints[name]

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


def _size(image: dict[str, Any] | None) -> int | None:
    """Size of an image file in bytes."""
    if image is None:
        return None
    if image.get("bytes") is not None:
        return len(image["bytes"])
    try:
        return Path(image["path"]).stat().st_size
    except OSError:
        return -1  # reported by the evaluation


__all__ = ["PlanDatasets"]
