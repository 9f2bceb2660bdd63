"""Layout with one folder per class: `normal/` and `anomalous/`, or `no/` and `yes/` for BrainMRI and Br35H."""

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing, natural_key
from .base import ANOMALOUS_NAMES, ANOTHER_COPY, NORMAL_NAMES, UNKNOWN_TYPE, Layout, Reading
from .masks import MaskFinder, mask_folder


def _class_folders(listing: Listing, folder: str, benchmark: Benchmark | None) -> dict[str, int]:
    """Paths of the class folders, with the label of each."""
    labels = {**dict.fromkeys(NORMAL_NAMES, 0), **dict.fromkeys(ANOMALOUS_NAMES, 1)}
    if benchmark is not None:
        labels = {"no": 0, "yes": 1}
    found = {}
    for path in listing.subfolders(folder):
        label = labels.get(listing.folder_name(path).lower())
        if label is not None and (listing.images(path) or listing.subfolders(path)):
            found[path] = label
    return found


def _category_folders(listing: Listing, benchmark: Benchmark | None) -> list[str]:
    """Folders that contain class folders: the root, or one folder per category."""
    if _class_folders(listing, "", benchmark):
        return [""]
    if benchmark is not None:
        return []
    return [folder for folder in listing.subfolders("") if _class_folders(listing, folder, None)]


def classes_match(listing: Listing, benchmark: Benchmark | None) -> bool:
    return bool(_category_folders(listing, benchmark))


def read_classes(reading: Reading) -> None:
    listing, reading.has_splits = reading.listing, False
    for folder in _category_folders(listing, reading.benchmark):
        category = reading.category_of(folder)
        classes = _class_folders(listing, folder, reading.benchmark)
        masks_root = mask_folder(listing, folder)
        for path, label in sorted(classes.items(), key=lambda item: (item[1], natural_key(item[0]))):
            # Defect types can have subfolders.
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
    """First existing folder of masks/<class>/<type>, masks/<type> and masks/<class>. Anomalous images fall back to
    masks/ itself."""
    if masks_root is None:
        return None
    below = images[len(folder) :].lstrip("/")
    for candidate in (below, below.rsplit("/", 1)[-1], below.split("/")[0]):
        if listing.has_folder(f"{masks_root}/{candidate}"):
            return f"{masks_root}/{candidate}"
    return masks_root if label else None


CLASSES = Layout(
    name="classes",
    title="one folder per class",
    matches=classes_match,
    read=read_classes,
    expected="normal/*.png, anomalous/*.png and optionally masks/*.png; no/ and yes/ for BrainMRI and Br35H",
)


__all__ = ["CLASSES"]
