"""MVTec AD folder tree: `<category>/{train,test}/<type>/` and `<category>/ground_truth/<type>/`."""

from collections.abc import Iterator

from ...models.vip2clip.image_listing_vip2clip import is_image_folder_name
from ..listing import Listing
from .base import NO_CATEGORY, NO_CLASS, NO_TYPE, SPLITS, UNKNOWN_TYPE, Layout, Reading
from .class_folders import SIMILAR
from .masks import MaskIndex, images_below, mask_part
from .words import is_no_class, simplify, split_name


NO_NORMAL = "types of splits without a folder of normal images, all read as kinds of defects"
SEVERAL_NORMAL = "folders of several names read as normal"


def _split_folders(listing: Listing, folder: str) -> Iterator[tuple[str, str]]:
    """Path and split of each folder called train, test, validation or similar."""
    for path in listing.subfolders(folder):
        split = split_name(listing.folder_name(path))
        if split is not None:
            yield path, split


def _category_folders(listing: Listing) -> list[str]:
    """Folders with train/ or test/ inside: the root, or one folder per category."""
    if any(_split_folders(listing, "")):
        return [""]
    return [folder for folder in listing.subfolders("") if any(_split_folders(listing, folder))]


def _select_categories(reading: Reading) -> list[str]:
    """Category folders to read. For a benchmark with one category, only the folder with a known name."""
    folders, benchmark = _category_folders(reading.listing), reading.benchmark
    if benchmark is None or len(benchmark.categories) > 1 or len(folders) < 2:
        return folders
    names = {name.lower() for name in (*benchmark.categories, *benchmark.folders)}
    known = [folder for folder in folders if folder.lower() in names]
    return known if len(known) == 1 else []


def tree_matches(reading: Reading) -> bool:
    listing = reading.listing
    for folder in _select_categories(reading):
        types = [inner for path, _ in _split_folders(listing, folder) for inner in listing.subfolders(path)]
        if reading.benchmark is None:  # train/images and train/masks are pairs
            types = [path for path in types if not is_image_folder_name(listing.folder_name(path))]
            types = [path for path in types if mask_part(listing, path) is None]
        if types and reading.category(listing.folder_name(folder)) is not None:
            return True
    return False


def read_tree(reading: Reading) -> None:
    listing, selected = reading.listing, _select_categories(reading)
    masks = MaskIndex(reading)
    for folder in _category_folders(listing):
        category = reading.category(listing.folder_name(folder)) if folder in selected else None
        if category is None:
            listing.mark(listing.below(folder), NO_CATEGORY)
            continue
        before = len(reading.rows)
        for path, split in sorted(_split_folders(listing, folder), key=lambda found: SPLITS.index(found[1])):
            _read_split(reading, masks, path, split, category)
        if len(reading.rows) == before:
            reading.empty.append(category)
    masks.add_masks_of_normal_images(reading.rows)


def _read_split(reading: Reading, masks: MaskIndex, folder: str, split: str, category: str) -> None:
    listing, own = reading.listing, reading.benchmark is None
    listing.mark(listing.images(folder), NO_TYPE)
    normal: dict[str, list[str]] = {}
    unknown = []
    for path in listing.subfolders(folder):
        kind = listing.folder_name(path)
        label, is_guess = reading.names.label(kind)
        if masks.is_mask_folder(path) or not listing.has_images(path):
            continue
        if label is None and own and (is_no_class(kind) or reading.names.normal is not None):
            listing.mark(listing.below(path), NO_CLASS if is_no_class(kind) else UNKNOWN_TYPE)
            continue
        if label is None:
            label = 1
            unknown.append(path)
        elif is_guess and own:
            reading.warn(SIMILAR, f"{path} ({'anomalous' if label else 'normal'})")
        if label == 0:
            normal.setdefault(simplify(kind).strip("0123456789 "), []).append(path)
        reading.classes.add(kind.strip().casefold())
        defect = kind.strip() if label else ""
        for image, _ in images_below(reading, masks, path, label):
            reading.add(image, label, category, masks(image, label, kind), defect=defect, split=split)
    if own and not reading.names.given:
        if unknown and not normal and split == "test":
            reading.warn(NO_NORMAL, *unknown)
        if len(normal) > 1:
            reading.warn(SEVERAL_NORMAL, *(path for paths in normal.values() for path in paths))


TREE = Layout(
    name="tree",
    title="MVTec AD folder tree",
    matches=tree_matches,
    read=read_tree,
    expected="<category>/test/good/*.png, <category>/test/<defect>/*.png, <category>/ground_truth/<defect>/*_mask.png",
)


__all__ = ["TREE"]
