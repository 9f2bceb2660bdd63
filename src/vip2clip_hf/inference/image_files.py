"""Heatmaps and anomaly maps of a prediction: which files belong to it, and whether there is room for them."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..utils.extras import extra
from .earlier import STATE_FILE, TABLE_FILE, rows_of_finished, settings_of_finished
from .images import DatasetImages, FolderImages, Images
from .names import packed


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.parquet as pq


logger = logging.get_logger(__name__)
# Subfolders for the files of single images, and the extensions of these files.
IMAGE_FOLDERS = {"heatmaps": ".png", "maps": ".npy"}


def targets_of(
    images: Any, names: "pa.ChunkedArray", settings: dict[str, Any], readable: Sequence[bool] | None = None
) -> Iterator[str]:
    """
    List the heatmaps and maps of images.

    Args:
        images ([`Images`], or the class): chooses the names of the files.
        names (`pyarrow.ChunkedArray` of bytes): names of the images.
        settings (`dict[str, Any]`): settings of the prediction.
        readable (`Sequence[bool]`, *optional*): whether each image has files. By default, all have.

    Yields:
        `str`: path below the output folder, with forward slashes.
    """
    kinds = {kind: extension for kind, extension in IMAGE_FOLDERS.items() if settings.get(kind)}
    if not kinds:
        return
    for position in range(len(names)):
        if readable is None or readable[position]:
            file = images.file(position, names[position].as_py())
            for kind, extension in kinds.items():
                yield f"{kind}/{file}{extension}"


def old_targets(folder: Path) -> list[str]:
    """
    List the heatmaps and maps of the finished prediction in a folder.

    Args:
        folder (`pathlib.Path`): output folder.

    Returns:
        `list[str]`: paths below the folder. Empty without a prediction.
    """
    found = settings_of_finished(folder)
    if found is None or not any(found.get(kind) for kind in IMAGE_FOLDERS):
        return []
    names = None
    with contextlib.suppress(OSError, ValueError):  # errors of Arrow are subclasses
        names = pq.read_table(folder / STATE_FILE, columns=["name"])["name"]
    if names is None:  # version 0.1, or damaged
        with contextlib.suppress(OSError, ValueError):
            ids = pq.read_table(folder / TABLE_FILE, columns=["id"])["id"]
            names = packed(os.fsencode(one) for one in ids.to_pylist())
    images = FolderImages if "folder" in (found.get("source") or {}) else DatasetImages
    if names is None:
        return []
    readable = None  # images that could not be read have no files
    with contextlib.suppress(OSError, ValueError):
        errors = pq.read_table(folder / TABLE_FILE, columns=["error"])["error"]
        if len(errors) == len(names):
            readable = errors.is_null().to_numpy(zero_copy_only=False)
    return list(targets_of(images, names, found, readable))


def count_lost(folder: Path, images: Images, names: "pa.ChunkedArray", settings: dict[str, Any]) -> int:
    """
    Count missing heatmaps and maps of a finished prediction.

    Args:
        folder (`pathlib.Path`): output folder.
        images ([`Images`]): the images.
        names (`pyarrow.ChunkedArray` of bytes): names of the images in the table.
        settings (`dict[str, Any]`): settings of the prediction.

    Returns:
        `int`: number of missing files.
    """
    errors = pq.read_table(folder / TABLE_FILE, columns=["error"])["error"]
    targets = targets_of(images, names, settings, errors.is_null().to_numpy(zero_copy_only=False))
    return sum(not (folder / target).is_file() for target in targets)


def rows_if_complete(folder: Path, images: Images, settings: dict[str, Any], title: str) -> "pa.Table | None":
    """
    Read the rows of a finished prediction, if all its files are complete. If not, log what is missing.

    Args:
        folder (`pathlib.Path`): output folder.
        images ([`Images`]): the images.
        settings (`dict[str, Any]`): settings of the prediction.
        title (`str`): name of the folder in messages.

    Returns:
        `pyarrow.Table`, *optional*: names, results and states. `None` if there are none, or a file is missing.
    """
    if not (folder / TABLE_FILE).exists():
        return None
    earlier = rows_of_finished(folder)
    if earlier is None:
        logger.warning(f"Files in {title!r} are damaged or missing. All images are predicted again.")
    elif lost := count_lost(folder, images, earlier["name"], settings):
        logger.warning(f"Missing heatmaps or maps in {title!r}: {lost}. All images are predicted again.")
        return None
    return earlier


def check_foreign_files(folder: Path, images: Images, names: "pa.ChunkedArray", settings: dict[str, Any]) -> None:
    """
    Check that no heatmap or map would replace a file that no prediction wrote.

    Args:
        folder (`pathlib.Path`): output folder.
        images ([`Images`]): images to predict.
        names (`pyarrow.ChunkedArray` of bytes): their names.
        settings (`dict[str, Any]`): settings of the prediction.

    Raises:
        OSError: if there is one.
    """
    foreign = set()
    for kind, extension in IMAGE_FOLDERS.items():
        if settings.get(kind) and (folder / kind).exists():
            below = (file for file in (folder / kind).rglob(f"*{extension}") if file.is_file())
            foreign |= {file.relative_to(folder).as_posix() for file in below}
    if foreign:
        foreign -= set(old_targets(folder))
    if foreign and (hit := foreign & set(targets_of(images, names, settings))):
        raise OSError(
            f"{str(folder / min(hit))!r} exists and was not written by a prediction; move or delete it, or choose "
            "another folder."
        )


def check_room(path: Path, num_maps: int, size: int) -> None:
    """
    Check that the remaining anomaly maps fit on the disk.

    Args:
        path (`pathlib.Path`): output folder.
        num_maps (`int`): number of maps to write, in float16.
        size (`int`): height and width of a map.

    Raises:
        OSError: if there is not enough space.
    """
    needed, free = 2 * size * size * num_maps, shutil.disk_usage(path).free
    if needed > free:
        raise OSError(
            f"The anomaly maps need {needed / 1e9:.1f} GB in {str(path)!r}, but only {free / 1e9:.1f} GB are free; "
            "choose another disk, or do not save the maps."
        )


__all__ = [
    "IMAGE_FOLDERS", "check_foreign_files", "check_room", "count_lost", "old_targets", "rows_if_complete",
    "targets_of",
]  # fmt: skip
