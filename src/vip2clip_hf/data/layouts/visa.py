"""Official VisA release: `split_csv/1cls.csv` lists images, labels and masks."""

import csv

from ..listing import LAYOUT_FILE, Listing
from .base import SPLITS, Layout, Reading
from .paths import PathResolver


def _visa_csv(listing: Listing) -> str | None:
    folder = listing.find_folder("", "split_csv")
    return None if folder is None else listing.find_file(folder, "1cls.csv")


def visa_matches(reading: Reading) -> bool:
    listing = reading.listing
    return any(listing.find_folder(folder, "Data") is not None for folder in listing.subfolders("")) or (
        _visa_csv(listing) is not None
    )


def read_visa(reading: Reading) -> None:
    listing = reading.listing
    path = _visa_csv(listing)
    if path is None:
        raise ValueError(
            f"Folder {str(listing.root)!r} contains the images of VisA but not split_csv/1cls.csv, which defines the "
            "split; expected this file from the official archive."
        )
    listing.mark([path], LAYOUT_FILE)
    resolve = PathResolver(listing)
    with open(listing.root / path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        expected = {"object", "split", "label", "image", "mask"}
        if not expected <= set(table.fieldnames or ()):
            found = ", ".join(table.fieldnames or ()) or "none"
            raise ValueError(f"{path} has the columns {found}; expected {', '.join(sorted(expected))}.")
        for line in table:
            category, image = reading.category(line["object"]), resolve(line["image"])
            if category is None or line["split"] not in SPLITS or line["label"] not in ("normal", "anomaly"):
                reading.warn("invalid lines in 1cls.csv, skipped", str(list(line.values())))
            elif image is None:
                reading.warn(resolve.problem(line["image"]), line["image"])
            else:
                anomalous = line["label"] == "anomaly"
                mask = resolve(line["mask"]) if anomalous and line["mask"] else None
                masks = [] if mask is None else [mask]
                defect = "anomaly" if anomalous else ""
                reading.add(image, int(anomalous), category, masks, defect=defect, split=line["split"])


VISA = Layout(
    name="visa",
    title="official VisA release",
    matches=visa_matches,
    read=read_visa,
    expected="split_csv/1cls.csv, <category>/Data/Images/{Normal,Anomaly}/*.JPG, <category>/Data/Masks/Anomaly/*.png",
)


__all__ = ["VISA"]
