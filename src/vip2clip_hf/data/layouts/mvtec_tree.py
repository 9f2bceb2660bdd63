"""MVTec AD folder tree: `<category>/{train,test}/<type>/` and `<category>/ground_truth/<type>/`."""

from ..benchmarks.benchmark import Benchmark
from ..listing import Listing
from .base import NO_CATEGORY, NO_TYPE, SPLITS, Layout, Reading, is_normal_name
from .masks import MaskFinder, mask_folder


def _category_folders(listing: Listing) -> list[str]:
    """Folders with train/ or test/ inside: the root, or one folder per category."""
    if any(listing.find_folder("", split) for split in SPLITS):
        return [""]
    folders = listing.subfolders("")
    return [folder for folder in folders if any(listing.find_folder(folder, split) for split in SPLITS)]


def _select_categories(reading: Reading) -> list[str]:
    """Category folders to read. For a benchmark with one category, only the folder with a known name."""
    folders, benchmark = _category_folders(reading.listing), reading.benchmark
    if benchmark is None or len(benchmark.categories) > 1 or len(folders) < 2:
        return folders
    names = {name.lower() for name in (*benchmark.categories, *benchmark.folders)}
    known = [folder for folder in folders if folder.lower() in names]
    return known if len(known) == 1 else []


def tree_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    reading = Reading(listing, benchmark)
    for folder in _select_categories(reading):
        splits = [found for split in SPLITS if (found := listing.find_folder(folder, split)) is not None]
        typed = any(listing.subfolders(split) for split in splits)
        if typed and reading.category(listing.folder_name(folder)) is not None:
            return True
    return False


def read_tree(reading: Reading) -> None:
    listing, selected = reading.listing, _select_categories(reading)
    for folder in _category_folders(listing):
        category = reading.category(listing.folder_name(folder)) if folder in selected else None
        if category is None:
            listing.mark(listing.below(folder), NO_CATEGORY)
            continue
        before = len(reading.rows)
        masks_root = mask_folder(listing, folder)
        for split in SPLITS:
            split_folder = listing.find_folder(folder, split)
            if split_folder is None:
                continue
            listing.mark(listing.images(split_folder), NO_TYPE)
            for type_folder in listing.subfolders(split_folder):
                kind = type_folder.rsplit("/", 1)[-1]
                normal = is_normal_name(kind)
                masks = MaskFinder(listing, _typed_mask_folder(listing, masks_root, kind, split, normal))
                for image in listing.images(type_folder):
                    defect = "" if normal else kind
                    reading.add(image, int(not normal), category, masks(image), defect=defect, split=split)
        if len(reading.rows) == before:
            reading.empty.append(category)


def _typed_mask_folder(listing: Listing, masks_root: str | None, kind: str, split: str, normal: bool) -> str | None:
    """Mask folder of a type: ground_truth/<type> or ground_truth/<split>/<type>. Defects fall back to ground_truth/
    itself if it has no subfolders."""
    if masks_root is None:
        return None
    found = listing.find_folder(masks_root, kind)
    if found is None and (inner := listing.find_folder(masks_root, split)) is not None:
        found = listing.find_folder(inner, kind)
    if found is None and not normal and not listing.subfolders(masks_root):
        found = masks_root
    return found


TREE = Layout(
    name="tree",
    title="MVTec AD folder tree",
    matches=tree_matches,
    read=read_tree,
    expected="<category>/test/good/*.png, <category>/test/<defect>/*.png, <category>/ground_truth/<defect>/*_mask.png",
)


__all__ = ["TREE"]
