"""Resolve paths listed in the files of a dataset."""

from typing import Any

from ..listing import Listing
from .base import Reading


class PathResolver:
    """
    Convert the paths listed in a file of a dataset to paths below the data root.

    Tried in this order: the path relative to `folder` and to the root; the path without its first part, if this is the
    name of the root; and the longest trailing part that exists below the root, for paths from another machine.

    Args:
        listing (`Listing`): files of the dataset.
        folder (`str`, defaults to `""`): folder of the file that lists the paths.
    """

    OUTSIDE = "paths that point outside the dataset, left out"
    MISSING = "listed images that do not exist, left out"

    def __init__(self, listing: Listing, folder: str = "") -> None:
        self.listing, self.folder = listing, folder
        self.root_name = listing.folder_name("")
        self.num_foreign = 0  # paths found by a trailing part

    @staticmethod
    def parts(path: str) -> list[str] | None:
        """Parts of a path with `..` resolved. None if the path points outside the dataset."""
        kept: list[str] = []
        for part in str(path).replace("\\", "/").split("/"):
            if part == "..":
                if not kept:
                    return None
                kept.pop()
            elif part not in ("", "."):
                kept.append(part)
        return kept

    def __call__(self, path: str) -> str | None:
        """Path of an existing file below the root, or None."""
        parts = self.parts(path)
        if not parts:
            return None
        foreign = str(path).startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":")
        if not foreign:
            for candidate in ((self.folder, *parts) if self.folder else parts, parts):
                if "/".join(candidate) in self.listing:
                    return "/".join(candidate)
            if parts[0] == self.root_name and "/".join(parts[1:]) in self.listing:
                return "/".join(parts[1:])
        for drop in range(0 if foreign else 1, len(parts)):
            tail = "/".join(parts[drop:])
            if tail in self.listing:
                self.num_foreign += 1
                return tail
        return None

    def problem(self, path: str) -> str:
        """Warning for an image path that could not be resolved."""
        return self.OUTSIDE if self.parts(path) is None else self.MISSING

    def add_note(self, reading: Reading, file: str) -> None:
        """Add a note to the reading if paths in the file were found by a trailing part."""
        if self.num_foreign:
            reading.notes.append(
                f"Paths in {file} from another machine or folder, matched by their last parts: {self.num_foreign}."
            )


def find_listed_mask(reading: Reading, resolve: PathResolver, path: Any) -> list[str]:
    """Path of a listed mask, as a list of at most one. An empty path, null or the path of a folder mean no mask."""
    if not isinstance(path, str) or not path.strip():
        return []
    found = resolve(path)
    if found is not None:
        return [found]
    parts = resolve.parts(path)
    if parts is None:
        reading.warn("mask paths that point outside the dataset, left out", path)
    elif parts and "." in parts[-1]:
        reading.warn("listed masks that do not exist, left out", path)
    return []


__all__ = ["PathResolver", "find_listed_mask"]
