"""`images/` and `masks/`: the polyp datasets, where every image is anomalous."""

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing
from .base import Layout, Reading
from .masks import MASK_FOLDERS, MaskFinder


# images/ and masks/: the polyp sets and ISIC, where every image is anomalous

_IMAGE_FOLDERS = ("images", "image", "original", "imgs")


def _pair_folders(listing: Listing) -> tuple[str, str] | None:
    images, masks = listing.find_folder("", *_IMAGE_FOLDERS), listing.find_folder("", *MASK_FOLDERS)
    return None if images is None or masks is None else (images, masks)


def pairs_match(listing: Listing, benchmark: Benchmark | None) -> bool:
    folders = _pair_folders(listing)
    return folders is not None and bool(listing.images(folders[0]))


def read_pairs(reading: Reading):
    images, masks = _pair_folders(reading.listing)
    reading.has_splits = False
    if reading.benchmark is None:
        reading.notes.append("Images whose mask is missing count as normal: the layout has no other label.")
    read_paired(reading, images, masks)


def read_paired(reading: Reading, images: str, masks: str, split: str = "test"):
    listing, find = reading.listing, MaskFinder(reading.listing, masks)
    category = reading.category(listing.folder_name(""))
    for image in listing.images(images):
        found = find(image)
        label = 1 if reading.benchmark is not None or found else 0
        reading.add(image, label, category, found, split=split)


PAIRS = Layout(
    name="pairs",
    title="images and masks",
    matches=pairs_match,
    read=read_pairs,
    expected="images/*.png, masks/*.png of the same stem",
)


__all__ = ["PAIRS", "read_paired"]
