"""Images to predict, accessed by position. They are opened one at a time; only their names are stored."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers.utils import logging

from ..data.collator import undecoded
from ..data.hub_datasets import is_hub_id
from ..data.sources import DataSource
from ..models.vip2clip.image_listing_vip2clip import UNREADABLE, LeftOut, has_image_extension, scan_images
from ..utils.contents import read_image_bytes
from ..utils.extras import extra
from ..utils.file_state import UNREADABLE as UNREADABLE_STATE, FileState, is_unchanged
from ..utils.urls import local_path
from .names import as_text, file_by_name, file_by_position, packed, unpacked
from .packed import PackedSource, find_packed


if TYPE_CHECKING:
    from datasets import Dataset

with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.compute as pc


logger = logging.get_logger(__name__)


def find_source(
    text: str | os.PathLike, split: str | None = None, categories: Sequence[str] | None = None
) -> "Path | DataSource | PackedSource":
    """
    Resolve the source argument of `vip2clip predict`.

    Args:
        text (`str` or `os.PathLike`):
            A folder, of which all images are predicted; also in a store, such as `s3://bucket/photos`. Or tar or
            Parquet files with images, as one file, a folder, or a pattern. Or a dataset: a table, `meta.json`, Hub id,
            or `NAME=ROOT` for a benchmark of the paper or a folder to read as a dataset.
        split (`str`, *optional*):
            Split of a dataset. Defaults to `"test"`.
        categories (`Sequence[str]`, *optional*):
            Categories of a dataset. Defaults to all.

    Returns:
        `pathlib.Path` of a folder, [`PackedSource`] of a folder in a store or of shards, or [`DataSource`] of a
        dataset. Images are not read.

    Raises:
        OSError: if the source does not exist.
        ValueError: if the source is a single image, or if a split or category is set for a folder.
    """
    text = os.fspath(text)
    if (packed_source := find_packed(text)) is not None:
        if split is not None or categories:
            raise ValueError(f"split and category do not apply to {text!r}, because all its images are predicted.")
        return packed_source
    text = local_path(text)
    path = Path(text)
    if path.is_dir():
        if split is not None or categories:
            raise ValueError(
                f"split and category do not apply to the folder {text!r}, because all its images are predicted. To "
                f"read it as a dataset, pass {path.name or 'name'}={text}."
            )
        return path
    if path.is_file() and has_image_extension(path.name):
        raise ValueError(
            f"{text!r} is a single image; expected a folder or a dataset. To predict a single image, leave out the "
            "output folder."
        )
    if not path.exists() and "=" not in text and not is_hub_id(text):
        raise OSError(f"{text!r} not found; expected a folder of images, a table, a Hub id or NAME=ROOT.")
    return DataSource.parse(text, "test" if split is None else split, categories)


def as_images(source: Any, output: str | os.PathLike, recursive: bool = True) -> "Images":
    """
    Open a source of images.

    Args:
        source (`str`, `os.PathLike`, [`PackedSource`], [`DataSource`] or `datasets.Dataset`):
            Source in a form that [`find_source`] accepts, or a dataset with a column `image`.
        output (`str` or `os.PathLike`):
            Output folder, or its URL. It is skipped if it is inside the source folder.
        recursive (`bool`, defaults to `True`):
            Whether to read the subfolders of a folder of images.

    Returns:
        [`FolderImages`], [`DatasetImages`], [`BucketImages`], [`TarImages`] or [`ParquetImages`]: the images.

    Raises:
        OSError: if the source does not exist or cannot be read.
        ValueError: if the source has another type, or contains no images.
    """
    if isinstance(source, (str, os.PathLike)):
        source = find_source(source)
    if isinstance(source, Path):
        return FolderImages(source, Path(output), recursive)
    if isinstance(source, PackedSource):
        return source.images(os.fspath(output), recursive)
    if isinstance(source, DataSource):
        description = {
            "data": os.path.realpath(source.root) if os.path.exists(source.root) else source.root,
            "benchmark": source.benchmark,
            "split": source.split,
            "categories": None if source.categories is None else list(source.categories),
        }
        return DatasetImages(source.load(need_labels=False), description)
    if "image" not in getattr(source, "column_names", ()):
        raise ValueError(
            f"source is a {type(source).__name__}; expected a folder, a DataSource, or a datasets.Dataset with a "
            "column 'image'."
        )
    return DatasetImages(source, {"data": "datasets.Dataset"})


class Images(Protocol):
    """
    Images to predict, by position.

    Attributes:
        description (`dict[str, Any]`): JSON-serializable values that identify the source.
        remote (`bool`): whether reading an image takes a request to a server.
        together (`bool`): whether images that follow each other are read faster by the same process.
    """

    description: dict[str, Any]
    remote: bool
    together: bool

    def is_here(self, count: int) -> bool:
        """Check that this process sees the images, of which the first process found `count`."""

    def names(self) -> "pa.ChunkedArray":
        """List the images: bytes, in order."""

    def locations(self) -> "pa.Table | None":
        """Tell where the images are, after `names()`: columns of integers. None if their names tell."""

    def read(self, position: int, name: bytes, location: tuple[int, ...] = ()) -> tuple[Any, FileState]:
        """Read an image for `load_image`, and its state. Raises OSError or ValueError if it cannot be read."""

    def is_unchanged(self, position: int, name: bytes, state: FileState) -> bool:
        """Check whether the contents of an image are those of an earlier prediction."""

    def file(self, position: int, name: bytes) -> str:
        """Choose where to write the files of an image: relative path without extension."""


class FolderImages:
    """
    All image files in a folder and its subfolders, by the rules of [`list_images`].

    The name of an image is its path below the folder, with forward slashes. Names are bytes, because on Linux a file
    name is not always valid text.

    Args:
        root (`pathlib.Path`): the folder.
        leave_out (`pathlib.Path`): folder to skip.
        recursive (`bool`, defaults to `True`): whether to read subfolders.
    """

    remote = together = False

    def __init__(self, root: Path, leave_out: Path, recursive: bool = True) -> None:
        self.root = os.path.realpath(root)
        self.description: dict[str, Any] = {"folder": self.root}
        self._leave_out = os.path.realpath(leave_out)
        self._recursive = recursive

    def is_here(self, count: int) -> bool:
        """
        Check that this process sees the images.

        Args:
            count (`int`): number of images that the first process found. Not used for folders.

        Returns:
            `bool`: whether the folder exists on this machine.
        """
        return os.path.isdir(self.root)

    def names(self) -> "pa.ChunkedArray":
        """
        List the images.

        Returns:
            `pyarrow.ChunkedArray` of bytes: sorted names. A subfolder that cannot be read is one entry that ends with
            a slash.

        Raises:
            OSError: if the folder cannot be read.
            ValueError: if it contains no images.
        """
        left_out = LeftOut(self.root)
        names = packed(self._walk("", left_out))
        left_out.report()
        if not len(names):
            raise ValueError(
                f"Folder {self.root!r} contains no images; expected files such as .png, .jpg or .tif in the folder"
                f"{' or its subfolders' if self._recursive else ''} (hidden ones are skipped)."
            )
        return names

    def _walk(self, folder: str, left_out: LeftOut) -> Iterator[bytes]:
        try:
            # Folder names end with a slash here, so the order is that of sorted full paths.
            entries = packed(self._entries(folder, left_out))
        except OSError as error:
            if not folder:
                raise
            left_out.add(UNREADABLE, f"{folder} ({error.strerror})")
            yield os.fsencode(folder)
            return
        for name in unpacked(entries.take(pc.sort_indices(entries))):
            if name.endswith(b"/"):
                yield from self._walk(folder + os.fsdecode(name), left_out)
            else:
                yield os.fsencode(folder) + name

    def _entries(self, folder: str, left_out: LeftOut) -> Iterator[bytes]:
        here = os.path.realpath(os.path.join(self.root, folder))
        leave_out = os.path.dirname(self._leave_out) == here and f"{os.path.basename(self._leave_out)}/"
        for name in scan_images(self.root, folder, left_out, self._recursive):
            if name != leave_out:
                yield os.fsencode(name)

    def locations(self) -> None:
        """The names tell where the images are."""

    def read(self, position: int, name: bytes, location: tuple[int, ...] = ()) -> tuple[Any, FileState]:
        """Read an image, see [`read_image_bytes`]."""
        return read_image_bytes(self.image(position, name))

    def image(self, position: int, name: bytes) -> str:
        """
        Locate an image.

        Args:
            position (`int`): position of the image. Not used for folders.
            name (`bytes`): name of the image.

        Returns:
            `str`: path, for `load_image`.

        Raises:
            OSError: if the entry is a subfolder that could not be read.
        """
        if name.endswith(b"/"):
            raise OSError(f"Folder {as_text(name)!r} could not be read; its images are missing from the table.")
        return os.path.join(self.root, os.fsdecode(name))

    def is_unchanged(self, position: int, name: bytes, state: FileState) -> bool:
        """
        Check whether the contents of an image are those of an earlier prediction.

        Args:
            position (`int`): position of the image. Not used for folders.
            name (`bytes`): name of the image.
            state (`FileState`): state of the earlier image.

        Returns:
            `bool`: whether the contents are the same.
        """
        if name.endswith(b"/"):  # still not readable
            return state.digest == UNREADABLE_STATE
        return is_unchanged(os.path.join(self.root, os.fsdecode(name)), state)

    file = staticmethod(file_by_name)


class DatasetImages:
    """
    Rows of a dataset. The name of an image is its `image_id`, or its row number if there is no such column.

    Args:
        dataset (`datasets.Dataset`): dataset with a column `image`.
        description (`dict[str, Any]`): JSON-serializable values that identify the dataset.
    """

    remote = together = False

    def __init__(self, dataset: "Dataset", description: dict[str, Any]) -> None:
        if not len(dataset):
            raise ValueError("The dataset contains no images; expected at least one.")
        self.description = description
        self._ids = dataset.select_columns("image_id") if "image_id" in dataset.column_names else None
        self._rows = undecoded(dataset.select_columns("image"), columns=("image",))

    def is_here(self, count: int) -> bool:
        """
        Check that this process sees the images.

        Args:
            count (`int`): number of images that the first process found.

        Returns:
            `bool`: whether this process found the same number of images.
        """
        return len(self._rows) == count

    def names(self) -> "pa.ChunkedArray":
        """
        List the images.

        Returns:
            `pyarrow.ChunkedArray` of bytes: names in the order of the rows.
        """
        if self._ids is None:
            return packed(b"%d" % number for number in range(len(self._rows)))
        ids = self._ids.with_format("arrow")[:]["image_id"]
        return ids.cast(pa.string()).cast(pa.binary())

    def locations(self) -> None:
        """The positions tell where the images are."""

    def read(self, position: int, name: bytes, location: tuple[int, ...] = ()) -> tuple[Any, FileState]:
        """Read an image, see [`read_image_bytes`]."""
        return read_image_bytes(self.image(position, name))

    def image(self, position: int, name: bytes) -> Any:
        """
        Get an image.

        Args:
            position (`int`): row number.
            name (`bytes`): name of the image. Not used for datasets.

        Returns:
            The undecoded image, for `load_image`.
        """
        return self._rows[position]["image"]

    def is_unchanged(self, position: int, name: bytes, state: FileState) -> bool:
        """
        Check whether the contents of an image are those of an earlier prediction.

        Args:
            position (`int`): row number.
            name (`bytes`): name of the image. Not used for datasets.
            state (`FileState`): state of the earlier image.

        Returns:
            `bool`: whether the contents are the same. `False` for an image at a URL.
        """
        image = self.image(position, name)
        if image is None or image.get("bytes") is not None or not state.size:
            return read_image_bytes(image)[1].digest == state.digest
        return is_unchanged(image["path"], state)

    file = staticmethod(file_by_position)


__all__ = ["DatasetImages", "FolderImages", "Images", "as_images", "find_source"]
