"""Images in a folder of a store, such as `s3://bucket/photos`."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.vip2clip.image_listing_vip2clip import (
    NOT_RECURSIVE,
    OWN_OUTPUT,
    SYSTEM_FILES,
    SYSTEM_FOLDERS,
    LeftOut,
    has_image_extension,
)
from ..utils.extras import extra
from ..utils.file_state import FileState, digest_of
from ..utils.remote import RemoteFolder, StoreError
from ..utils.run_folder import MANIFEST_FILE
from ..utils.urls import is_below, is_safe, join_url
from .located import LocatedImages, Location
from .names import as_text, file_by_name, packed


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa

if TYPE_CHECKING:
    from ..utils.remote import Entry


class BucketImages(LocatedImages):
    """
    All images in a folder of a store and its subfolders, with the names and the order of [`FolderImages`].

    Args:
        url (`str`): the folder.
        leave_out (`str`): folder to skip.
        recursive (`bool`, defaults to `True`): whether to read subfolders.
    """

    remote = True
    together = False

    def __init__(self, url: str, leave_out: str, recursive: bool = True) -> None:
        self.folder = RemoteFolder(url)
        self.description: dict[str, Any] = {"folder": self.folder.url}
        self._leave_out, self._recursive = leave_out, recursive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_locations": None}  # workers get the locations of their images

    def is_here(self, count: int) -> bool:
        """
        Check that this process sees the images.

        Args:
            count (`int`): number of images that the first process found. Not used for folders.

        Returns:
            `bool`: whether the folder exists in the store.
        """
        return self.folder.kind() is not None

    def names(self) -> "pa.ChunkedArray":
        """
        List the images. Subfolders are listed one at a time.

        Returns:
            `pyarrow.ChunkedArray` of bytes: sorted names. A subfolder whose name cannot be part of a path is one entry
            that ends with a slash.

        Raises:
            OSError: if the folder does not exist.
            StoreError: if the store cannot be reached, or refuses access.
            ValueError: if it contains no images.
        """
        left_out = LeftOut(self.folder.url)
        versions: list[int] = []

        def names() -> Iterator[bytes]:
            for name, version in self._walk("", left_out):
                versions.append(version)
                yield name

        try:
            found = packed(names())
        except FileNotFoundError as error:
            raise OSError(f"{self.folder.url!r} not found; expected a folder with images.") from error
        left_out.report()
        if not len(found):
            raise ValueError(
                f"{self.folder.url!r} contains no images; expected files such as .png, .jpg or .tif"
                f"{' also in its subfolders' if self._recursive else ''}, or only .tar or .parquet files."
            )
        self._locations = pa.table({"version": np.array(versions, dtype=np.int64)})
        return found

    def _walk(self, folder: str, left_out: LeftOut) -> Iterator[tuple[bytes, int]]:
        entries = self.folder.entries(folder.rstrip("/"))
        if folder and any(entry.name == MANIFEST_FILE for entry in entries):
            left_out.add(OWN_OUTPUT, folder.rstrip("/"))
            return
        # As for local folders, the order is that of the full paths.
        entries.sort(key=lambda entry: os.fsencode(f"{entry.name}/" if entry.is_folder else entry.name))
        for entry in entries:
            yield from self._entry(folder, entry, left_out)

    def _entry(self, folder: str, entry: "Entry", left_out: LeftOut) -> Iterator[tuple[bytes, int]]:
        lower, name = entry.name.lower(), folder + entry.name
        if entry.is_folder:
            if not is_safe(entry.name):
                yield os.fsencode(f"{name}/"), 0
            elif entry.name[0] == "." or lower in SYSTEM_FOLDERS:
                return
            elif not self._recursive:
                left_out.add(NOT_RECURSIVE, name)
            elif not is_below(join_url(self.folder.url, name), self._leave_out):
                yield from self._walk(f"{name}/", left_out)
        elif has_image_extension(lower):
            if lower[0] != "." and lower not in SYSTEM_FILES:
                yield os.fsencode(name), entry.version
        elif "." in lower:
            left_out.add_file(name)

    def read(self, position: int, name: bytes, location: Location = ()) -> tuple[Any, FileState]:
        """
        Download an image.

        Args:
            position (`int`): position of the image. Not used for folders.
            name (`bytes`): name of the image.
            location (`tuple[int, ...]`): its row of [`BucketImages.locations`].

        Returns:
            `tuple[Any, FileState]`: the image for `load_image`, and the state. The `inode` is the version.

        Raises:
            OSError: if the object is gone, cannot be read while others can, or its name cannot be part of a path.
            StoreError: if the store cannot be reached, or refuses access.
        """
        text = os.fsdecode(name)
        url = join_url(self.folder.url, text)
        if not is_safe(text):
            raise OSError(
                f"{as_text(name)!r} cannot be part of a path, so its images are not read; expected a name without "
                "empty parts, '.', '..' and backslashes."
            )
        try:
            content = self.folder.read(text)
        except FileNotFoundError as error:
            raise OSError(f"{url!r} not found; it was deleted after the images were listed.") from error
        except StoreError as error:
            # If the rest of the folder can be read, only this object is locked.
            if isinstance(error.__cause__, PermissionError) and self.folder.kind() is not None:
                raise OSError(str(error)) from error
            raise
        state = FileState(digest_of(content), len(content), inode=location[0] if location else 0)
        return {"bytes": content, "path": url}, state

    file = staticmethod(file_by_name)


__all__ = ["BucketImages"]
