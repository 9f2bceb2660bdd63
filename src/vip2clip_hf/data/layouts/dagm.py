"""DAGM 2007 as released: `ClassN/{Train,Test}/NNNN.PNG` with `Label/NNNN_label.PNG` and `Label/Labels.txt`."""

from ..benchmarks.benchmark import Benchmark
from ..listing import LAYOUT_FILE, Listing, stem
from .base import ANOTHER_COPY, NO_CATEGORY, SPLITS, Layout, Reading
from .masks import MaskFinder


# DAGM 2007 as released: ClassN/{Train,Test}/NNNN.PNG with Label/NNNN_label.PNG and Label/Labels.txt


def _dagm_labels(listing: Listing, folder: str) -> str | None:
    for split in SPLITS:
        inner = listing.find_folder(folder, split)
        if inner is not None and (label := listing.find_folder(inner, "Label")) is not None:
            return label
    return None


def dagm_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    return any(_dagm_labels(listing, folder) is not None for folder in listing.subfolders(""))


def read_dagm(reading: Reading):
    listing = reading.listing
    for folder in listing.subfolders(""):
        category = reading.category(listing.folder_name(folder))
        if category is None:
            copy = any(_dagm_labels(listing, f) for sub in (folder, *listing.subfolders(folder))
                       for f in listing.subfolders(sub))  # fmt: skip
            listing.mark(listing.below(folder), ANOTHER_COPY if copy else NO_CATEGORY)
            continue
        before = len(reading.rows)
        for split in SPLITS:
            images = listing.find_folder(folder, split)
            if images is None:
                continue
            label_folder = listing.find_folder(images, "Label")
            masks = MaskFinder(listing, label_folder)
            listed = _read_dagm_labels(reading, label_folder)
            for image in listing.images(images):
                found = masks(image)
                if listed and listed.get(stem(image), int(bool(found))) != int(bool(found)):
                    reading.warn("images whose mask and entry in Labels.txt disagree, taken as anomalous", image)
                anomalous = bool(found) or listed.get(stem(image)) == 1
                defect = "defect" if anomalous else ""
                reading.add(image, int(anomalous), category, found, defect=defect, split=split)
        if len(reading.rows) == before:
            reading.empty.append(category)


def _read_dagm_labels(reading: Reading, folder: str | None) -> dict[str, int]:
    """Labels.txt: a first line, then number, label, file, 0, mask or 0, separated by tabs."""
    path = None if folder is None else reading.listing.find_file(folder, "Labels.txt")
    if path is None:
        return {}
    reading.listing.mark([path], LAYOUT_FILE)
    labels = {}
    lines = (reading.listing.root / path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for line in lines[1:]:
        cells = line.split()
        if not cells:
            continue
        if len(cells) < 3 or cells[1] not in ("0", "1"):
            reading.warn("lines of Labels.txt that cannot be understood", f"{path}: {line.strip()!r}")
            continue
        labels[stem(cells[2])] = int(cells[1])
    return labels


DAGM = Layout(
    name="dagm",
    title="DAGM 2007 as released",
    matches=dagm_matches,
    read=read_dagm,
    expected="Class1/Test/*.PNG, Class1/Test/Label/Labels.txt, Class1/Test/Label/*_label.PNG, ...",
)


__all__ = ["DAGM"]
