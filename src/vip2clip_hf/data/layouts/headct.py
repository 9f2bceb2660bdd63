"""Official HeadCT release: `labels.csv` and numbered images."""

import csv
import os
from pathlib import Path

from ..listing import LAYOUT_FILE, Listing, stem
from .base import NO_LABEL, Layout, Reading


def _headct_csv(listing: Listing) -> Path | None:
    """Path of labels.csv, in the folder or next to it (as in the copy used by the released code)."""
    path = listing.find_file("", "labels.csv")
    found = listing.root / path if path is not None else Path(os.path.abspath(listing.root)).parent / "labels.csv"
    try:
        with open(found, encoding="utf-8-sig", newline="") as file:
            header = [cell.strip().lower() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError):
        return None
    return found if header[:2] == ["id", "hemorrhage"] else None


def _headct_images(listing: Listing, folder: str = "", depth: int = 2) -> list[str]:
    """Paths of the numbered images, from the first level that has any."""
    images = [path for path in listing.images(folder) if stem(path).isdigit()]
    if images or not depth:
        return images
    return [path for inner in listing.subfolders(folder) for path in _headct_images(listing, inner, depth - 1)]


def headct_matches(reading: Reading) -> bool:
    return _headct_csv(reading.listing) is not None and bool(_headct_images(reading.listing))


def read_headct(reading: Reading) -> None:
    listing, reading.has_splits = reading.listing, False
    path = _headct_csv(listing)
    if path is None:
        return
    listing.mark([listing.find_file("", "labels.csv")], LAYOUT_FILE)
    labels = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(csv.reader(file)):
            if not number or not line:
                continue
            cells = [cell.strip() for cell in line]
            if len(cells) < 2 or not cells[0].isdigit() or cells[1] not in ("0", "1"):
                reading.warn("invalid lines in labels.csv, skipped", ",".join(line))
                continue
            labels[int(cells[0])] = int(cells[1])  # ids have no leading zeros, file names do
    for image in _headct_images(listing):
        label = labels.get(int(stem(image)))
        if label is None:
            reading.warn("images missing from labels.csv, left out", image)
            listing.mark([image], NO_LABEL)
            continue
        reading.add(image, label, reading.category_of())


HEADCT = Layout(
    name="headct",
    title="official HeadCT release",
    matches=headct_matches,
    read=read_headct,
    expected="labels.csv, head_ct/head_ct/000.png, ...",
)


__all__ = ["HEADCT"]
