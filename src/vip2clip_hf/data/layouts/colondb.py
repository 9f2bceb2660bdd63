"""CVC-ColonDB as released: `N.bmp` next to `pN.bmp` (polyp), `sN.bmp` and `cN.bmp`."""

import re

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing, stem
from .base import NOT_USED, Layout, Reading
from .masks import MaskFinder


# CVC-ColonDB as released: N.bmp, and beside it pN.bmp (polyp), sN.bmp and cN.bmp


def _colondb_folder(listing: Listing) -> str | None:
    for folder in ("", *listing.subfolders("")):
        names = {name.lower() for name in listing.files(folder)}
        if any(name.endswith(".bmp") and name[:-4].isdigit() and f"p{name}" in names for name in names):
            return folder
    return None


def colondb_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return _colondb_folder(listing) is not None


def read_colondb(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    folder = _colondb_folder(listing)
    masks = MaskFinder(listing, folder, prefix="p")
    for path in listing.images(folder):
        if stem(path).isdigit():
            reading.add(path, 1, reading.category(""), masks(path))
        elif re.fullmatch(r"[sc]\d+", stem(path), re.IGNORECASE):
            listing.mark([path], NOT_USED)


COLONDB = Layout(
    name="colondb",
    title="CVC-ColonDB as released",
    matches=colondb_matches,
    read=read_colondb,
    expected="1.bmp, p1.bmp, ...",
)


__all__ = ["COLONDB"]
