"""Sources that are not local image files: folders in stores, and shards (tar or Parquet files) with many images."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..models.vip2clip.image_listing_vip2clip import has_image_extension, is_system_path
from ..utils.local_folder import LocalFolder
from ..utils.remote import RemoteFolder
from ..utils.urls import is_remote, is_safe, local_path


if TYPE_CHECKING:
    from .bucket import BucketImages
    from .shards import ParquetImages, TarImages

KINDS = {"tar": (".tar",), "parquet": (".parquet", ".pq")}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# Most objects of a folder that are looked at to see whether it contains images or shards.
_MOST_LOOKED_AT = 2000


@dataclass(frozen=True)
class PackedSource:
    """
    Folder in a store, or shards.

    Args:
        root (`str`): URL or path of the folder.
        kind (`str`): `"images"`, `"tar"` or `"parquet"`.
        files (`str`): name or pattern of the shards in the folder; empty for all.
    """

    root: str
    kind: str
    files: str = ""

    def folder(self) -> RemoteFolder | LocalFolder:
        """Open the folder."""
        return RemoteFolder(self.root) if is_remote(self.root) else LocalFolder(self.root)

    def shards(self) -> list[str]:
        """
        List the shards.

        Returns:
            `list[str]`: paths below the root, sorted.

        Raises:
            OSError: if there are none, or if a shard of a range does not exist.
            StoreError: if the store cannot be reached, or refuses access.
        """
        folder = self.folder()
        if not _is_pattern(self.files) and self.files:
            names = [self.files]
        elif _RANGE.search(self.files):
            names = _numbered(self.files)
        else:
            pattern = self.files or "*"
            names = [
                name
                for name, entry in folder.walk()
                if not entry.is_folder
                and name.lower().endswith(KINDS[self.kind])
                and not is_system_path(name)
                and (fnmatchcase(name, pattern) if self.files else True)
                and ("/" not in name or not self.files)
                and name.rpartition("/")[2] != "predictions.parquet"  # a result of this package
            ]
            if not names:
                raise OSError(
                    f"{self.root!r} contains no {'/'.join(KINDS[self.kind])} files"
                    f"{f' that match {self.files!r}' if self.files else ''}."
                )
            return sorted(names, key=os.fsencode)
        for name in names:
            if not is_safe(name) or folder.kind(name) != "file":
                raise OSError(f"{name!r} not found in {self.root!r}; expected a {'/'.join(KINDS[self.kind])} file.")
        return names

    def images(self, output: str, recursive: bool = True) -> "BucketImages | TarImages | ParquetImages":
        """
        Open the images.

        Args:
            output (`str`): output folder, which is skipped if it is in the source.
            recursive (`bool`, defaults to `True`): whether to read subfolders of a folder of images.

        Returns:
            [`BucketImages`], [`TarImages`] or [`ParquetImages`]: the images.

        Raises:
            OSError: if there are no shards.
            StoreError: if the store cannot be reached, or refuses access.
        """
        if self.kind == "images":
            from .bucket import BucketImages

            return BucketImages(self.root, output, recursive)
        from .shards import ParquetImages, TarImages

        return (TarImages if self.kind == "tar" else ParquetImages)(self)


def find_packed(text: str) -> PackedSource | None:
    """
    Resolve a source that is a folder in a store, or shards.

    Args:
        text (`str`): URL of a folder or shard, or a path of shards. The last part can be a pattern, such as
            `train-*.tar` or `train-{0000..0127}.tar`.

    Returns:
        [`PackedSource`]: the source. None if it is something else, such as a local folder of images.

    Raises:
        ImportError: if the package for this kind of store is not installed.
        OSError: if the source does not exist.
        StoreError: if the store cannot be reached, or refuses access.
        ValueError: if the kind of file is not supported.
    """
    remote = is_remote(text)
    text = text if remote else local_path(text)
    lower = text.lower()
    head, slash, last = text.rstrip("/").rpartition("/")
    if not remote and os.sep != "/" and not slash:
        head, slash, last = text.rpartition(os.sep)
    if lower.endswith(_COMPRESSED):
        raise ValueError(
            f"{text!r} is a compressed archive, whose images cannot be read one at a time; expected a .tar file "
            "(unpack it with gzip -d or similar; photos do not get smaller by compression)."
        )
    kind = next((kind for kind, endings in KINDS.items() if lower.endswith(endings)), None)
    if kind is not None and (remote or kind == "tar" or _is_pattern(last)) and not os.path.isdir(text):
        if not remote and not _is_pattern(last) and not os.path.isfile(text):
            raise OSError(f"{text!r} not found; expected a .tar file, or a pattern such as 'train-*.tar'.")
        if _is_pattern(head) and not (not remote and os.path.exists(head)):
            raise ValueError(f"{text!r} has a pattern in a folder; expected one in the last part only.")
        return PackedSource(head or (slash if slash else "."), kind, last)
    if not remote:
        return _local_shards(text) if os.path.isdir(text) else None
    return _remote_folder(text)


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[") or _RANGE.search(text) is not None


def _numbered(pattern: str) -> list[str]:
    """Names of a pattern with a range, such as `train-{0000..0127}.tar`."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise ValueError(f"{pattern!r} has an empty range; expected the smaller number first.")
    width = len(found[1])
    names = [
        f"{pattern[: found.start()]}{number:0{width}d}{pattern[found.end() :]}" for number in range(first, last + 1)
    ]
    return [name for one in names for name in _numbered(one)]


def _kind_of(names: Iterator[str]) -> str | None:
    """Kind of the files in a folder: `"images"` if there is an image, else that of the shards."""
    kinds = set()
    for number, name in enumerate(names):
        if has_image_extension(name):
            return "images"
        kinds |= {kind for kind, endings in KINDS.items() if name.lower().endswith(endings)}
        if number >= _MOST_LOOKED_AT:
            break
    return next(iter(sorted(kinds, reverse=True)), None)


def _local_shards(text: str) -> PackedSource | None:
    """A local folder that contains shards, and no images, subfolders or other tables at its top."""
    with os.scandir(text) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    if not found or not all(entry.is_file() and not has_image_extension(entry.name) for entry in found):
        return None
    # A folder with a single table is read as a dataset, as before.
    counts = {kind: sum(one.name.lower().endswith(ends) for one in found) for kind, ends in KINDS.items()}
    if counts["tar"] and not counts["parquet"]:
        return PackedSource(text, "tar")
    if counts["parquet"] > 1 and not counts["tar"]:
        return PackedSource(text, "parquet")
    return None


def _remote_folder(url: str) -> PackedSource:
    folder = RemoteFolder(url)
    kind = folder.kind()
    if kind == "file":
        name = url.rpartition("/")[2]
        what = "a single image" if has_image_extension(name) else "a file of another kind"
        raise ValueError(f"{url!r} is {what}; expected a folder, .tar or .parquet files.")
    names = (name for name, entry in folder.walk() if not entry.is_folder and not is_system_path(name))
    try:
        found = _kind_of(names)
    except FileNotFoundError as error:
        raise OSError(f"{url!r} not found; expected a folder with images, or .tar or .parquet files.") from error
    return PackedSource(folder.url, found or "images")


__all__ = ["KINDS", "PackedSource", "find_packed"]
