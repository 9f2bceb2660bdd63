"""The images of a prediction, by position. They are opened one at a time; only their names are kept."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..data.collator import undecoded
from ..data.hub_datasets import is_hub_id
from ..data.listing import has_image_extension, is_system_path
from ..data.sources import DataSource
from ..utils.files import file_names
from .names import as_text, packed, unpacked


if TYPE_CHECKING:
    from datasets import Dataset

from ..utils.extras import extra


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.compute as pc


logger = logging.get_logger(__name__)
# What file systems take, less an extension.
LONGEST_FILE_NAME = 240


def find_source(
    text: str | os.PathLike, split: str | None = None, categories: Sequence[str] | None = None
) -> "Path | DataSource":
    """
    What a command line names: a folder, all images of which are meant; a table, `meta.json` or Hub id; or `NAME=ROOT`,
    a benchmark of the paper or a folder that is read as a data set.

    Raises:
        OSError: nothing there.
        ValueError: a photo, or a split or category of a folder.
    """
    text = os.fspath(text)
    path = Path(text)
    if path.is_dir():
        if split is not None or categories:
            raise ValueError(
                f"split and category choose from data sets, and of the folder {text!r} all images are predicted; name "
                f"it as a data set: {path.name or 'name'}={text}."
            )
        return path
    if path.is_file() and has_image_extension(path.name):
        raise ValueError(f"{text!r} is one photo; expected a folder or a data set, or no output folder.")
    if not path.exists() and "=" not in text and not is_hub_id(text):
        raise OSError(f"{text!r} not found; expected a folder of photos, a table, a Hub id or NAME=ROOT.")
    return DataSource.parse(text, "test" if split is None else split, categories)


def as_images(source: Any, output: Path) -> "FolderImages | DatasetImages":
    """
    Args:
        source: a folder, a [`DataSource`], what [`find_source`] takes, or a `datasets.Dataset` with a column `image`.
        output (`Path`): is left out, where it lies in the folder.
    """
    if isinstance(source, (str, os.PathLike)):
        source = find_source(source)
    if isinstance(source, Path):
        return FolderImages(source, output)
    if isinstance(source, DataSource):
        root = os.path.realpath(source.root) if os.path.exists(source.root) else source.root
        described = {"data": root, "benchmark": source.benchmark, "split": source.split}
        described["categories"] = None if source.categories is None else list(source.categories)
        return DatasetImages(source.load(need_labels=False), described)
    if "image" not in getattr(source, "column_names", ()):
        raise ValueError(
            f"Expected a folder, a DataSource or a datasets.Dataset with a column image, found "
            f"{type(source).__name__}."
        )
    return DatasetImages(source, {"data": "datasets.Dataset"})


class FolderImages:
    """
    Every image file in a folder and its subfolders, hidden ones left out. A name is the path below the folder, with
    forward slashes, as bytes: on Linux they need not be text. Links to files are followed, links to folders are not.

    Args:
        root (`Path`): the folder.
        leave_out (`Path`): a folder that is left out.
    """

    def __init__(self, root: Path, leave_out: Path):
        self.root = os.path.realpath(root)
        self.description = {"folder": self.root}
        self._leave_out = os.path.realpath(leave_out)

    def is_here(self, count: int) -> bool:
        """Whether this machine sees them."""
        return os.path.isdir(self.root)

    def names(self) -> "pa.ChunkedArray":
        """
        Sorted. A subfolder that cannot be read stands among them with a slash at its end.

        Raises:
            OSError: the folder cannot be read.
            ValueError: it holds no image.
        """
        names = packed(self._walk(""))
        if not len(names):
            raise ValueError(
                f"Folder {self.root!r} has no image files; expected files such as .png, .jpg or .tif in it or in its "
                "subfolders (hidden ones and links to folders are left out)."
            )
        return names

    def _walk(self, folder: str) -> Iterator[bytes]:
        try:
            # With the slash behind them folders stand where their files do when whole paths are sorted.
            entries = packed(self._entries(folder))
        except OSError as error:
            if not folder:
                raise
            logger.warning(f"Folder {folder!r} in {self.root!r} could not be read: {error}")
            yield os.fsencode(folder)
            return
        for name in unpacked(entries.take(pc.sort_indices(entries))):
            if name.endswith(b"/"):
                yield from self._walk(folder + os.fsdecode(name))
            else:
                yield os.fsencode(folder) + name

    def _entries(self, folder: str) -> Iterator[bytes]:
        path = os.path.join(self.root, folder)
        leave_out = os.path.dirname(self._leave_out) == os.path.realpath(path) and os.path.basename(self._leave_out)
        with os.scandir(path) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != leave_out and not is_system_path(f"{entry.name}/x"):
                        yield os.fsencode(entry.name) + b"/"
                elif has_image_extension(entry.name) and not is_system_path(entry.name) and _is_file(entry):
                    yield os.fsencode(entry.name)

    def image(self, position: int, name: bytes) -> str:
        """For `load_image`."""
        if name.endswith(b"/"):
            raise OSError(f"Folder {as_text(name)!r} could not be read; the images in it are missing here.")
        return os.path.join(self.root, os.fsdecode(name))

    @staticmethod
    def file(position: int, name: bytes) -> str:
        """Path of what is written for an image, below the folder for it and without the extension."""
        folder, slash, last = name.rpartition(b"/")
        if len(last) > LONGEST_FILE_NAME:
            last = last[: LONGEST_FILE_NAME - 40].decode("utf-8", "ignore").encode() + b"-%09d" % position
        return os.fsdecode(folder + slash + last)


def _is_file(entry: os.DirEntry) -> bool:
    """A link that leads nowhere is an image that cannot be read; a pipe is no image."""
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


class DatasetImages:
    """
    The rows of a data set. A name is the `image_id` of a row, its number where there is none.

    Args:
        dataset (`datasets.Dataset`): with a column `image`.
        description (`dict`): what tells it from others, of values for JSON.
    """

    def __init__(self, dataset: "Dataset", description: dict[str, Any]):
        if not len(dataset):
            raise ValueError("The data set has no images; expected at least one.")
        self.description = description
        self._ids = dataset.select_columns("image_id") if "image_id" in dataset.column_names else None
        self._rows = undecoded(dataset.select_columns("image"), columns=("image",))

    def is_here(self, count: int) -> bool:
        return len(self._rows) == count

    def names(self) -> "pa.ChunkedArray":
        if self._ids is None:
            return packed(b"%d" % number for number in range(len(self._rows)))
        ids = self._ids.with_format("arrow")[:]["image_id"]
        return ids.cast(pa.string()).cast(pa.binary())

    def image(self, position: int, name: bytes) -> Any:
        return self._rows[position]["image"]

    @staticmethod
    def file(position: int, name: bytes) -> str:
        text = as_text(name)
        safe = file_names([text])[text].encode()[: LONGEST_FILE_NAME - 40].decode("utf-8", "ignore")
        return f"{position:09d}-{safe}"


__all__ = ["DatasetImages", "FolderImages", "as_images", "find_source"]
