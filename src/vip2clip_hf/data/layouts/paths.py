"""Resolve paths that are written in a file of a dataset."""

from typing import Any

from ..listing import Listing
from .base import Reading


class PathResolver:
    """
    Paths that stand in a file of a data set, as paths below its root.

    Tried in this order: the path as it is; without its first part, when that is the name of the root; and the
    longest trailing part that exists below the root, for paths of another machine.

    Args:
        listing (`Listing`): what there is.
        folder (`str`, defaults to `""`): folder the file with the paths lies in, to which they are relative.
    """

    LEAVES = "paths that lead out of the data set, left out"
    ABSENT = "images that a file names but that are not there, left out"

    def __init__(self, listing: Listing, folder: str = ""):
        self.listing, self.folder = listing, folder
        self.root_name = listing.folder_name("")
        self.rerooted = 0

    @staticmethod
    def parts(path: str) -> list[str] | None:
        """Parts of a path, `..` resolved; None where it leads out."""
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
        """Path below the root of a file that exists, or None."""
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
                self.rerooted += 1
                return tail
        return None

    def refused(self, path: str) -> tuple[str, str]:
        """Why a path gave nothing: the kind of warning, and the path."""
        return (self.LEAVES if self.parts(path) is None else self.ABSENT), str(path)


def find_named_mask(reading: Reading, resolve: PathResolver, named: Any) -> list[str]:
    """The mask a file names. Empty, null and the path of a folder mean that there is none."""
    if not isinstance(named, str) or not named.strip():
        return []
    found = resolve(named)
    if found is not None:
        return [found]
    parts = resolve.parts(named)
    if parts is None:
        reading.warn("masks named by a path that leads out of the data set, left out", named)
    elif parts and "." in parts[-1]:
        reading.warn("masks that a file names but that are not there", named)
    return []


__all__ = ["PathResolver", "find_named_mask"]
