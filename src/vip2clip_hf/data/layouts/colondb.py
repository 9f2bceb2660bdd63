"""Official CVC-ColonDB release: frames `N.bmp` with masks `pN.bmp` (polyp) and the unused `sN.bmp` and `cN.bmp`."""

import re

from ..listing import Listing, stem
from .base import NOT_USED, Layout, Reading
from .masks import MaskFinder


def _colondb_folder(listing: Listing) -> str | None:
    """Folder with the frames: the root or a folder directly inside."""
    for folder in ("", *listing.subfolders("")):
        names = {name.lower() for name in listing.files(folder)}
        if any(name.endswith(".bmp") and name[:-4].isdigit() and f"p{name}" in names for name in names):
            return folder
    return None


def colondb_matches(reading: Reading) -> bool:
    return _colondb_folder(reading.listing) is not None


def read_colondb(reading: Reading) -> None:
    listing, reading.has_splits = reading.listing, False
    folder = _colondb_folder(listing)
    if folder is None:
        return
    masks = MaskFinder(listing, folder, prefix="p")
    for path in listing.images(folder):
        if stem(path).isdigit():
            reading.add(path, 1, reading.category_of(), masks(path))
        elif re.fullmatch(r"[sc]\d+", stem(path), re.IGNORECASE):
            listing.mark([path], NOT_USED)


COLONDB = Layout(
    name="colondb",
    title="official CVC-ColonDB release",
    matches=colondb_matches,
    read=read_colondb,
    expected="1.bmp, p1.bmp, ...",
)


__all__ = ["COLONDB"]
