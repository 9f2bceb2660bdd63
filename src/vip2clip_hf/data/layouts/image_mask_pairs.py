"""Layout with `images/` and `masks/`, used by the polyp benchmarks, where every image is anomalous."""

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing
from .base import Layout, Reading
from .masks import MASK_FOLDERS, MaskFinder


_IMAGE_FOLDERS = ("images", "image", "original", "imgs")


def _pair_folders(listing: Listing) -> tuple[str, str] | None:
    images, masks = listing.find_folder("", *_IMAGE_FOLDERS), listing.find_folder("", *MASK_FOLDERS)
    return None if images is None or masks is None else (images, masks)


def pairs_match(listing: Listing, benchmark: Benchmark | None) -> bool:
    folders = _pair_folders(listing)
    return folders is not None and bool(listing.images(folders[0]))


def read_pairs(reading: Reading) -> None:
    folders = _pair_folders(reading.listing)
    if folders is None:
        return
    reading.has_splits = False
    if reading.benchmark is None:
        reading.notes.append("Images without a mask count as normal because this layout has no other labels.")
    read_paired(reading, *folders)


def read_paired(reading: Reading, images: str, masks: str, split: str = "test") -> None:
    """Add the images of a folder, with masks from another folder. Without a benchmark, images without a mask are
    normal."""
    listing, find = reading.listing, MaskFinder(reading.listing, masks)
    category = reading.category_of()
    for image in listing.images(images):
        found = find(image)
        label = 1 if reading.benchmark is not None or found else 0
        reading.add(image, label, category, found, split=split)


PAIRS = Layout(
    name="pairs",
    title="image and mask folders",
    matches=pairs_match,
    read=read_pairs,
    expected="images/*.png, masks/*.png with the same stems",
)


__all__ = ["PAIRS", "read_paired"]
