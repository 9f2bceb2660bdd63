"""`normal/` and `anomalous/` for your own photos; `yes/` and `no/` for BrainMRI and Br35H."""

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing, natural_key
from .base import ANOMALOUS_NAMES, ANOTHER_COPY, NORMAL_NAMES, UNKNOWN_TYPE, Layout, Reading
from .masks import MaskFinder, mask_folder


# normal/ and anomalous/: one's own photos; yes/ and no/: BrainMRI and Br35H


def _class_folders(listing: Listing, folder: str, benchmark: Benchmark | None) -> dict[str, int]:
    """Folders of images by class: path -> label."""
    labels = {**dict.fromkeys(NORMAL_NAMES, 0), **dict.fromkeys(ANOMALOUS_NAMES, 1)}
    if benchmark is not None:
        labels = {"no": 0, "yes": 1}
    found = {}
    for path in listing.subfolders(folder):
        label = labels.get(listing.folder_name(path).lower())
        if label is not None and (listing.images(path) or listing.subfolders(path)):
            found[path] = label
    return found


def _class_categories(listing: Listing, benchmark: Benchmark | None) -> list[str]:
    if _class_folders(listing, "", benchmark):
        return [""]
    if benchmark is not None:
        return []
    return [folder for folder in listing.subfolders("") if _class_folders(listing, folder, None)]


def classes_match(listing: Listing, benchmark: Benchmark | None) -> bool:
    return bool(_class_categories(listing, benchmark))


def read_classes(reading: Reading):
    listing, reading.has_splits = reading.listing, False
    for folder in _class_categories(listing, reading.benchmark):
        category = reading.category(listing.folder_name(folder))
        classes = _class_folders(listing, folder, reading.benchmark)
        masks_root = mask_folder(listing, folder)
        for path, label in sorted(classes.items(), key=lambda item: (item[1], natural_key(item[0]))):
            # The kinds of defects may have folders of their own inside.
            inner = listing.subfolders(path) if label and reading.benchmark is None else []
            for images in (path, *inner):
                masks = MaskFinder(listing, _class_mask_folder(listing, masks_root, folder, images, label))
                defect = "" if images == path else images.rsplit("/", 1)[-1]
                for image in listing.images(images):
                    reading.add(image, label, category, masks(image), defect=defect)
        for other in listing.subfolders(folder):
            if other in classes or other == masks_root:
                continue
            inside = _class_folders(listing, other, reading.benchmark)
            listing.mark(listing.below(other), ANOTHER_COPY if inside else UNKNOWN_TYPE)


def _class_mask_folder(listing: Listing, masks_root: str | None, folder: str, images: str, label: int) -> str | None:
    """masks/<class>/<type>, masks/<class>, masks/<type>, or for anomalous images masks itself."""
    if masks_root is None:
        return None
    below = images[len(folder) :].lstrip("/")
    for candidate in (below, below.rsplit("/", 1)[-1], below.split("/")[0]):
        if listing.has_folder(f"{masks_root}/{candidate}"):
            return f"{masks_root}/{candidate}"
    return masks_root if label else None


CLASSES = Layout(
    name="classes",
    title="one folder for each class",
    matches=classes_match,
    read=read_classes,
    expected="normal/*.png, anomalous/*.png (for BrainMRI and Br35H no/ and yes/); masks/ where there are any",
)


__all__ = ["CLASSES"]
