"""Layout with `images/` and `masks/`. The polyp benchmarks use it, where every image is anomalous."""

import os
from concurrent.futures import ThreadPoolExecutor

from ...models.vip2clip.image_listing_vip2clip import is_image_folder_name
from ...models.vip2clip.mask_loading_vip2clip import load_mask
from ..listing import Listing
from .base import NO_LABEL, Layout, Reading, Row
from .masks import MASK_FOLDERS, MaskFinder, MaskIndex, images_below
from .words import split_name


_IMAGE_FOLDERS = ("images", "image", "original", "imgs")


def _pair_folders(listing: Listing, folder: str = "") -> tuple[str, str] | None:
    images, masks = listing.find_folder(folder, *_IMAGE_FOLDERS), listing.find_folder(folder, *MASK_FOLDERS)
    return None if images is None or masks is None else (images, masks)


def _image_folders(reading: Reading, masks: MaskIndex | None = None) -> list[tuple[str, str]]:
    """Folder of each category and its folder of images. Only for your own data: several categories, images in
    subfolders, and masks in a folder beside the images or among them."""
    listing = reading.listing
    found = _pair_folders(listing)
    if reading.benchmark is not None:
        return [("", found[0])] if found is not None and listing.images(found[0]) else []
    masks = masks or MaskIndex(Reading(listing))
    pairs: list[tuple[str, str]] = []
    for folder in ("", *listing.subfolders("")):
        subfolders = listing.subfolders(folder)
        images = [path for path in subfolders if is_image_folder_name(listing.folder_name(path))]
        images = [path for path in images if listing.has_images(path)]
        if images and masks.has_folders:
            pairs += [(folder, path) for path in images]
        elif not folder and (masks.masks_beside("") or any(masks(image, None) for image in masks.images(""))):
            pairs.append(("", ""))
        if pairs and not folder:
            break
    return pairs


def pairs_match(reading: Reading) -> bool:
    return bool(_image_folders(reading))


def read_pairs(reading: Reading) -> None:
    reading.has_splits = False
    if reading.benchmark is not None:
        folders = _pair_folders(reading.listing)
        if folders is not None:
            read_paired(reading, *folders)
        return
    masks = MaskIndex(reading)
    found: dict[str, list[str]] = {}
    for folder, images in _image_folders(reading, masks):
        for image, _ in images_below(reading, masks, images, None):
            found[image] = masks(image, None)
            split = split_name(folder) if folder else None
            reading.has_splits |= split is not None
            category = reading.category_of("" if split is not None else folder)
            reading.add(image, None, category, found[image], split=split or "test")
    unmatched = masks.files() if not any(found.values()) else []
    if unmatched and found:
        raise ValueError(
            f"Folder {str(reading.listing.root)!r} has masks such as {unmatched[0]!r} and images such as "
            f"{next(iter(found))!r}, but no mask has the name of an image; expected names such as images/1.png and "
            "masks/1.png or masks/1_mask.png."
        )
    _label_by_masks(reading, found)


def _label_by_masks(reading: Reading, masks: dict[str, list[str]]) -> None:
    """An image is anomalous if its mask marks a pixel. Opens every mask, because this layout has no other labels."""

    def is_marked(row: Row) -> bool | str:
        try:
            return any((load_mask(reading.listing.absolute(mask)) > 0).any() for mask in masks[row.image])
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(is_marked, reading.rows))
    with_mask = [row for row in reading.rows if masks[row.image]]
    if not any(masks[row.image] and not isinstance(marked, str) for row, marked in zip(reading.rows, found)):
        raise ValueError(
            f"Folder {str(reading.listing.root)!r} has images and a folder for masks, but no mask can be read, so no "
            "image has a label; expected masks as images, such as masks/1.png. To read the images without labels, "
            "pass layout='flat' (--layout flat)."
        )
    rows = []
    for row, marked in zip(reading.rows, found):
        if isinstance(marked, str):
            reading.warn(
                "unreadable masks, images left out because their labels are unknown", f"{row.image} ({marked})"
            )
            reading.listing.mark([row.image, row.mask], NO_LABEL)
            continue
        row.label = int(marked)
        rows.append(row)
    empty = sum(1 for row in rows if masks[row.image] and not row.label)
    reading.rows = rows
    reading.labels_from_masks = True
    if not any(row.label for row in rows):
        reading.warn("empty masks only, so all images count as normal", f"{len(with_mask)} masks")
    reading.notes.append(
        f"Labels come from the masks: {sum(row.label or 0 for row in rows)} of {len(with_mask)} masks mark a pixel, "
        f"and their images are anomalous. Images with an empty mask ({empty}) or without a mask "
        f"({sum(1 for row in rows if not masks[row.image])}) count as normal. Images without a mask count as normal "
        "because this layout has no other labels."
    )


def read_paired(reading: Reading, images: str, masks: str, split: str = "test") -> None:
    """Add the anomalous images of a benchmark, with masks from another folder."""
    listing, find = reading.listing, MaskFinder(reading.listing, masks)
    category = reading.category_of()
    for image in listing.images(images):
        found = find(image)
        label = 1 if reading.benchmark is not None or found else 0
        reading.add(image, label, category, found, split=split)


PAIRS = Layout(
    name="pairs",
    title="image and mask folders",
    matches=pairs_match,
    read=read_pairs,
    expected="images/*.png, masks/*.png with the same stems",
)


__all__ = ["PAIRS", "read_paired"]
