"""Layout of a folder of images without labels."""

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing
from .base import Layout, Reading


def flat_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return bool(listing.images(""))


def read_flat(reading: Reading) -> None:
    listing, reading.has_splits = reading.listing, False
    for image in listing.images(""):
        reading.add(image, None, reading.category_of())
    for folder in listing.subfolders(""):
        listing.mark(listing.below(folder), "files in subfolders")


FLAT = Layout(
    name="flat",
    title="images without labels",
    matches=flat_matches,
    read=read_flat,
    expected="*.png",
)


__all__ = ["FLAT"]
