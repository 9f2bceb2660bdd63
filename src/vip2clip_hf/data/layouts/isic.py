"""Official ISIC 2016 release: an image folder and a mask folder per split."""

from ..listing import Listing
from .base import Layout, Reading
from .image_mask_pairs import read_paired


def _isic_folders(listing: Listing) -> dict[str, tuple[str, str]]:
    """Image folder and mask folder of each split."""
    names = {"test": "Test", "train": "Training"}
    found = {}
    for split, name in names.items():
        images = listing.find_folder("", f"ISBI2016_ISIC_Part1_{name}_Data")
        masks = listing.find_folder("", f"ISBI2016_ISIC_Part1_{name}_GroundTruth")
        if images is not None and masks is not None:
            found[split] = images, masks
    return found


def isic_matches(reading: Reading) -> bool:
    return "test" in _isic_folders(reading.listing)


def read_isic(reading: Reading) -> None:
    for split, (images, masks) in _isic_folders(reading.listing).items():
        read_paired(reading, images, masks, split)


ISIC = Layout(
    name="isic",
    title="official ISIC 2016 release",
    matches=isic_matches,
    read=read_isic,
    expected="ISBI2016_ISIC_Part1_Test_Data/*.jpg, ISBI2016_ISIC_Part1_Test_GroundTruth/*_Segmentation.png",
)


__all__ = ["ISIC"]
