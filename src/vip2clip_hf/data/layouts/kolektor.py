"""Official KolektorSDD release: `kosNN/PartM.jpg` and `kosNN/PartM_label.bmp`.

This is the only layout that opens images, because the labels are only in the masks.
"""

import re

from ...models.vip2clip.mask_loading_vip2clip import load_mask
from ..listing import LAYOUT_FILE, Listing, stem
from .base import NO_LABEL, Layout, Reading
from .masks import MaskFinder


def _kolektor_folders(listing: Listing) -> list[str]:
    return [folder for folder in listing.subfolders("") if re.fullmatch(r"kos\d+", folder.lower())]


def kolektor_matches(reading: Reading) -> bool:
    return bool(_kolektor_folders(reading.listing))


def read_kolektor(reading: Reading) -> None:
    listing, reading.has_splits = reading.listing, False
    for folder in _kolektor_folders(listing):
        masks = MaskFinder(listing, folder, suffix="_label")
        for image in listing.images(folder):
            if stem(image).lower().endswith("_label"):
                continue
            found = masks(image)
            if len(found) != 1:
                reading.warn("images without exactly one label bitmap, left out", image)
                listing.mark([image], NO_LABEL)
                continue
            try:
                anomalous = bool((load_mask(listing.absolute(found[0])) > 0).any())
            except OSError as error:
                reading.warn("unreadable label bitmaps, images left out", f"{found[0]} ({error})")
                listing.mark([image], NO_LABEL)
                continue
            if not anomalous:
                listing.mark(found, LAYOUT_FILE)
            reading.add(
                image, int(anomalous), reading.category_of(), found if anomalous else [],
                defect="defect" if anomalous else "",
            )  # fmt: skip


KOLEKTOR = Layout(
    name="kolektor",
    title="official KolektorSDD release",
    matches=kolektor_matches,
    read=read_kolektor,
    expected="kos01/Part0.jpg, kos01/Part0_label.bmp, ...",
)


__all__ = ["KOLEKTOR"]
