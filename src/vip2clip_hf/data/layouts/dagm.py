"""Official DAGM 2007 release: `ClassN/{Train,Test}/NNNN.PNG`, `Label/NNNN_label.PNG` and `Label/Labels.txt`."""

from ..listing import LAYOUT_FILE, Listing, stem
from .base import ANOTHER_COPY, NO_CATEGORY, SPLITS, Layout, Reading
from .masks import MaskFinder


def _label_folder(listing: Listing, folder: str) -> str | None:
    """First folder `Label` of a category, or None."""
    for split in SPLITS:
        inner = listing.find_folder(folder, split)
        if inner is not None and (label := listing.find_folder(inner, "Label")) is not None:
            return label
    return None


def dagm_matches(reading: Reading) -> bool:
    listing = reading.listing
    return any(_label_folder(listing, folder) is not None for folder in listing.subfolders(""))


def read_dagm(reading: Reading) -> None:
    listing = reading.listing
    for folder in listing.subfolders(""):
        category = reading.category(listing.folder_name(folder))
        if category is None:
            parents = (folder, *listing.subfolders(folder))
            is_copy = any(_label_folder(listing, inner) for parent in parents for inner in listing.subfolders(parent))
            listing.mark(listing.below(folder), ANOTHER_COPY if is_copy else NO_CATEGORY)
            continue
        before = len(reading.rows)
        for split in SPLITS:
            images = listing.find_folder(folder, split)
            if images is None:
                continue
            label_folder = listing.find_folder(images, "Label")
            masks = MaskFinder(listing, label_folder)
            listed = _read_labels(reading, label_folder)
            for image in listing.images(images):
                found = masks(image)
                if listed and listed.get(stem(image), int(bool(found))) != int(bool(found)):
                    reading.warn("images where mask and Labels.txt disagree, treated as anomalous", image)
                anomalous = bool(found) or listed.get(stem(image)) == 1
                defect = "defect" if anomalous else ""
                reading.add(image, int(anomalous), category, found, defect=defect, split=split)
        if len(reading.rows) == before:
            reading.empty.append(category)


def _read_labels(reading: Reading, folder: str | None) -> dict[str, int]:
    """Labels in Labels.txt by image stem. After a header line, each line contains number, label, file, 0, and mask or
    0, separated by tabs."""
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
            reading.warn("invalid lines in Labels.txt, skipped", f"{path}: {line.strip()!r}")
            continue
        labels[stem(cells[2])] = int(cells[1])
    return labels


DAGM = Layout(
    name="dagm",
    title="official DAGM 2007 release",
    matches=dagm_matches,
    read=read_dagm,
    expected="Class1/Test/*.PNG, Class1/Test/Label/Labels.txt, Class1/Test/Label/*_label.PNG, ...",
)


__all__ = ["DAGM"]
