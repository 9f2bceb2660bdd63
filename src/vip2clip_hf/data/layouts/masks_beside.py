"""Masks beside images: divide the image files of a folder into images and masks, by names and colors."""

import os
import re

from PIL import Image

from ...models.vip2clip.image_listing_vip2clip import image_stem, mask_stem
from ..listing import MASK_WITHOUT_IMAGE, Listing, has_image_extension, stem
from .base import Reading


_WEAK_SUFFIXES = ("label", "labels", "anno", "annotation", "annotations", "seg", "segm")
_LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})
# A mask has few colors, a photo has many.
_MOST_COLORS = 16
SAME_STEM = "masks with the name of their image and another extension, recognized by their few colors"
SAME_STEM_IMAGES = "images with the name of another image and another extension, read as separate images"
RESULT = "drawings beside their images, left out"
_RESULT = re.compile(
    r"[ _.\-](?:overlays?|heat[ _\-]?maps?|anomaly[ _\-]?maps?|pred|predictions?|vis|visualization|thumb|thumbnail)$",
    re.IGNORECASE,
)
WEAK_SUFFIX = "files read as the mask beside an image, by their name"
LOOKS_LIKE_MASK = "images whose names look like masks, read as images"


def holds_photos(listing: Listing, folder: str) -> bool:
    """Whether one of the first images below a folder is a photo: most of its pixels are neither black nor white."""
    images = (path for inner in listing.walk(folder) for path in listing.images(inner))
    return any(_looks_like_photo(listing.absolute(path)) for path, _ in zip(images, range(3)))


def _looks_like_photo(path: str) -> bool:
    try:
        with Image.open(path) as image:
            if image.mode == "P" or image.getcolors(_MOST_COLORS) is not None:
                return False
            counts = image.convert("L").histogram()
    except Exception:  # Pillow raises various errors
        return False
    return sum(counts[32:224]) > sum(counts) / 2


def split_masks(reading: Reading, paths: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """
    Divide the image files of a folder.

    Args:
        reading ([`Reading`]): dataset. Receives warnings.
        paths (`list[str]`): image files directly in one folder.

    Returns:
        `tuple[list[str], dict[str, list[str]]]`: the images, and the masks beside them by image.
    """
    by_stem: dict[str, list[str]] = {}
    keys = {}
    paths = _without_results(reading, paths)
    for path in paths:
        name = stem(path)
        by_stem.setdefault(name.lower(), []).append(path)
        if (key := mask_stem(name)) is not None:
            keys[path] = key.lower()
        elif has_image_extension(name):  # 1.png.png
            keys[path] = name.lower()
    if not keys and len(by_stem) == len(paths):
        return paths, {}
    masks: dict[str, list[str]] = {}
    taken: set[str] = set()
    if len(by_stem) < len(paths):
        pairs = [tuple(found) for found in by_stem.values() if len(found) > 1 and found[0] not in keys]
        _pair_by_extension(reading, pairs, masks, taken)
    targets = {path: stem(path).lower() for path in paths if path not in keys and path not in taken}
    by_key: dict[str, list[str]] = {}
    for path, name in targets.items():
        for key in {name, os.path.basename(path).lower(), image_stem(name)}:
            by_key.setdefault(key, []).append(path)
    orphans = []
    for path, key in keys.items():
        found = by_key.get(key, [])
        if not found:
            orphans.append(path)
            continue
        taken.add(path)
        for image in found:
            masks.setdefault(image, []).append(path)
        if stem(path).lower().endswith(_WEAK_SUFFIXES):
            reading.warn(WEAK_SUFFIX, path)
    if taken.intersection(keys):
        reading.listing.mark([*taken, *orphans], MASK_WITHOUT_IMAGE)
        taken.update(orphans)
    else:
        reading.listing.mark(taken, MASK_WITHOUT_IMAGE)
        strong = [
            path for path in orphans if mask_stem(stem(path)) and not stem(path).lower().endswith(_WEAK_SUFFIXES)
        ]
        if strong:
            reading.warn(LOOKS_LIKE_MASK, *strong)
    return [path for path in paths if path not in taken], masks


def _without_results(reading: Reading, paths: list[str]) -> list[str]:
    """Leave out drawings beside their images: 1_overlay.png, and 1.png.png unless it is a mask."""
    results = {}
    for path in paths:
        name = stem(path)
        if (found := _RESULT.search(name)) is not None:
            results[path] = name[: found.start()].lower()
        elif has_image_extension(name) and _looks_like_photo(reading.listing.absolute(path)):
            results[path] = stem(name).lower()
    if not results:
        return paths
    stems = {stem(path).lower() for path in paths if path not in results}
    left_out = [path for path, image in results.items() if image in stems]
    if left_out:
        reading.warn(RESULT, *left_out)
        reading.listing.mark(left_out, RESULT)
    return [path for path in paths if path not in left_out]


def _pair_by_extension(
    reading: Reading, pairs: list[tuple[str, ...]], masks: dict[str, list[str]], taken: set[str]
) -> None:
    """Find the masks among files with the same stem, such as 1.jpg and 1.png, by their colors."""

    def mask_of(pair: tuple[str, ...]) -> str | None:
        few = [path for path in pair if _has_few_colors(reading.listing.absolute(path))]
        lossless = [path for path in few if os.path.splitext(path)[1].lower() not in _LOSSY]
        found = few if len(few) == 1 else lossless
        return found[0] if len(pair) == 2 and len(found) == 1 else None

    first = [mask_of(pair) for pair in pairs[:3]]
    for number, pair in enumerate(pairs):
        if number < 3:
            mask = first[number]
        elif None in first:
            mask = mask_of(pair)
        else:  # all of the first are masks: the others are recognized by their extensions
            extensions = {os.path.splitext(str(one))[1].lower() for one in first}
            found = [path for path in pair if os.path.splitext(path)[1].lower() in extensions]
            mask = found[0] if len(pair) == 2 and len(found) == 1 else mask_of(pair)
        if mask is None:
            reading.warn(SAME_STEM_IMAGES, *pair)
            continue
        taken.add(mask)
        masks.setdefault(next(path for path in pair if path != mask), []).append(mask)
        reading.warn(SAME_STEM, mask)


def _has_few_colors(path: str) -> bool:
    try:
        with Image.open(path) as image:
            return image.getcolors(_MOST_COLORS) is not None
    except Exception:  # Pillow raises various errors
        return False


__all__ = ["holds_photos", "split_masks"]
