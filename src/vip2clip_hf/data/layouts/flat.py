"""Layout of a folder of images without labels."""

from .base import Layout, Reading
from .masks import MaskIndex, images_below


def flat_matches(reading: Reading) -> bool:
    return bool(reading.listing.images(""))


def read_flat(reading: Reading) -> None:
    reading.has_splits = False
    masks = MaskIndex(reading)
    for image, _ in images_below(reading, masks, "", None):
        reading.add(image, None, reading.category_of())


FLAT = Layout(
    name="flat",
    title="images without labels",
    matches=flat_matches,
    read=read_flat,
    expected="*.png, also in subfolders",
)


__all__ = ["FLAT"]
