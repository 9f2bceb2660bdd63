"""KolektorSDD as released: `kosNN/PartM.jpg` and `kosNN/PartM_label.bmp`.

The only layout that opens files: the dataset marks anomalous images nowhere but in their masks.
"""

import re

from ...models.vip2clip.image_loading_vip2clip import load_mask
from ..benchmarks.benchmark import Benchmark
from ..listing import LAYOUT_FILE, Listing, stem
from .base import NO_LABEL, Layout, Reading
from .masks import MaskFinder


# KolektorSDD as released: kosNN/PartM.jpg and kosNN/PartM_label.bmp


def _kolektor_folders(listing: Listing) -> list[str]:
    return [folder for folder in listing.subfolders("") if re.fullmatch(r"kos\d+", folder.lower())]


def kolektor_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return bool(_kolektor_folders(listing))


def read_kolektor(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    for folder in _kolektor_folders(listing):
        masks = MaskFinder(listing, folder, suffix="_label")
        for image in listing.images(folder):
            if stem(image).lower().endswith("_label"):
                continue
            found = masks(image)
            if len(found) != 1:
                reading.warn("images of KolektorSDD without one label bitmap, left out", image)
                listing.mark([image], NO_LABEL)
                continue
            try:
                anomalous = bool((load_mask(listing.absolute(found[0])) > 0).any())
            except OSError as error:
                reading.warn("label bitmaps that cannot be read, their images left out", f"{found[0]} ({error})")
                listing.mark([image], NO_LABEL)
                continue
            if not anomalous:
                listing.mark(found, LAYOUT_FILE)
            reading.add(
                image, int(anomalous), reading.category(""), found if anomalous else [],
                defect="defect" if anomalous else "",
            )  # fmt: skip


KOLEKTOR = Layout(
    name="kolektor",
    title="KolektorSDD as released",
    matches=kolektor_matches,
    read=read_kolektor,
    expected="kos01/Part0.jpg, kos01/Part0_label.bmp, ...",
)


__all__ = ["KOLEKTOR"]
