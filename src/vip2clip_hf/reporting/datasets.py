"""Photos, labels and file names of predictions of a dataset or folder."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..models.vip2clip.arguments_vip2clip import LABELS
from .predictions import Predictions


def stems_of_dataset(names: Sequence[str]) -> list[str]:
    """
    Return the paths of maps and heatmaps of a dataset.

    Args:
        names (`Sequence[str]`): ids of the photos.

    Returns:
        `list[str]`: paths without extension.
    """
    from ..inference.names import file_by_position

    return [file_by_position(position, os.fsencode(name)) for position, name in enumerate(names)]


def stems_of_folder(names: Sequence[str]) -> list[str]:
    """
    Return the paths of maps and heatmaps of a folder of photos.

    Args:
        names (`Sequence[str]`): names of the photos.

    Returns:
        `list[str]`: paths without extension.
    """
    from ..inference.names import file_by_name

    return [file_by_name(position, os.fsencode(name)) for position, name in enumerate(names)]


def rows_of_dataset(
    found: Predictions, root: str | os.PathLike[str] | None = None
) -> list[Callable[[], Any] | None] | None:
    """
    Load the photos of a dataset that was predicted, and add its labels to the results.

    Args:
        found ([`Predictions`]): the results. Their `truth` is set. If the dataset cannot be loaded, a note is added.
        root (`str` or `os.PathLike`, *optional*): folder of the dataset, if it was moved.

    Returns:
        `list[Callable]`, *optional*: function per row that reads the undecoded image, `None` for photos that are gone.
        `None` without a dataset.
    """
    from ..data.sources import DataSource

    source = found.settings.get("source") or {}
    place = os.fspath(root) if root is not None else source.get("data")
    if not place and "shards" in source:
        found.notes.append(f"There are no photos: they are in shards of {source['shards']!r}.")
        return None
    if not place or place == "datasets.Dataset":
        found.notes.append("There are no photos: the results are those of a dataset in the memory of a program.")
        return None
    categories = source.get("categories")
    data = DataSource(
        os.path.basename(place) or place,
        place,
        source.get("benchmark"),
        source.get("split") or "test",
        tuple(categories) if categories else None,
    )
    try:
        dataset = data.load(need_labels=False)
    except (OSError, ValueError, ImportError) as error:
        found.notes.append(f"There are no photos and no labels: {error}")
        return None
    named = "image_id" in dataset.column_names
    ids = [str(one) for one in dataset["image_id"]] if named else [str(number) for number in range(len(dataset))]
    places = {name: position for position, name in enumerate(ids)}
    labels = dataset["label"] if "label" in dataset.column_names else [None] * len(dataset)
    images: list[Callable[[], Any] | None] = []
    for row in found.rows:
        position = places.get(row.id)
        images.append(None if position is None else partial(_load, dataset, position))
        label = None if position is None else labels[position]
        if label in (0, 1):
            row.truth = LABELS[int(label)]
    return images


def _load(dataset: Any, position: int) -> Any:
    return dataset[position]["image"]


__all__ = ["rows_of_dataset", "stems_of_dataset", "stems_of_folder"]
