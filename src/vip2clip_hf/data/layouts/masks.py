"""Match masks to images by file name."""

import os
from collections.abc import Iterator

from ...models.vip2clip.image_listing_vip2clip import image_stem, is_image_folder_name, mask_folder_part, mask_stem
from ..listing import MASK_WITHOUT_IMAGE, Listing, has_image_extension, stem
from .base import NO_CLASS, Reading, Row
from .masks_beside import holds_photos, split_masks
from .words import is_no_class, split_name, word_label


MASK_FOLDERS = ("ground_truth", "ground truth", "groundtruth", "gt", "masks", "mask")
MASK_SUFFIXES = ("_mask", "_label", "_segmentation")
# Names that are also kinds of defects. Beside a folder of normal images they are not mask folders.
_WEAK_FOLDERS = frozenset({"label", "seg", "segm", "anno", "annotation"})
CONTRADICTION = "folders whose names contradict the class folder above them, read as the class above"
OTHER_VIEWS = "images beside a folder rgb/, left out as no photos"


class MaskFinder:
    """
    Index of the masks in a folder by stem, with and without a suffix or prefix such as `_mask`. Masks are never
    matched by sort order, where one extra file shifts all pairs after it.

    An exact match is preferred to one that ignores case, and this to one of names such as `1_image` and `1_mask`.

    Args:
        listing (`Listing`): files of the dataset.
        folder (`str`, *optional*): mask folder. None if there is no mask folder.
        prefix (`str`, defaults to `""`): prefix of masks stored next to the images, in lower case. It is not part of
            the stem.
        suffix (`str`, defaults to `""`): suffix of masks stored next to the images, in lower case. One of
            `MASK_SUFFIXES`; the stem is then only used without it.
    """

    def __init__(self, listing: Listing, folder: str | None, prefix: str = "", suffix: str = "") -> None:
        self.exact: dict[str, list[str]] = {}
        self.loose: dict[str, list[str]] = {}
        for path in listing.images(folder) if folder is not None else ():
            name = stem(path)
            lower = name.lower()
            if not lower.startswith(prefix) or not lower.endswith(suffix):
                continue
            listing.mark([path], MASK_WITHOUT_IMAGE)
            name, lower = name[len(prefix) :], lower[len(prefix) :]
            known = next((s for s in MASK_SUFFIXES if lower.endswith(s) and len(lower) > len(s)), "")
            for key in {name[: len(name) - len(known)]} if suffix else {name, name[: len(name) - len(known)]}:
                self.exact.setdefault(key, []).append(path)
            if not prefix and not suffix:
                for key in _mask_keys(lower):
                    self.loose.setdefault(key, []).append(path)

    def __call__(self, image: str) -> list[str]:
        """Paths of the masks of an image. Several paths mean that the file names are ambiguous."""
        name = stem(image)
        if name in self.exact or not self.loose:
            return self.exact.get(name, [])
        lower = name.lower()
        for key in (lower, os.path.basename(image).lower(), image_stem(lower)):
            if key in self.loose:
                return self.loose[key]
        return []


def _mask_keys(name: str) -> set[str]:
    """Stems of the images, in lower case, that a mask with this stem can belong to."""
    keys = {name}
    for _ in range(2):  # 1.png_mask, 1_mask.png
        keys |= {inner for key in keys if (inner := mask_stem(key)) is not None}
        keys |= {os.path.splitext(key)[0] for key in keys if has_image_extension(key)}
    return keys


class MaskIndex:
    """
    All masks of a dataset: in mask folders anywhere, and beside the images.

    A mask folder is called `masks`, `ground_truth`, `gt`, `labels`, `bad_masks` or similar. It belongs to the images
    whose folders contain the other parts of its path, in this order: `masks/bad` and `ground_truth/test/bad` both
    belong to `test/bad`. The folder with most parts in common is preferred.

    Args:
        reading ([`Reading`]): dataset. For a benchmark, there are no masks beside images.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading, self.listing = reading, reading.listing
        self._folders: dict[tuple[str, ...], list[str]] = {}
        self._paths: set[str] = set()
        self._finders: dict[str, MaskFinder] = {}
        self._groups: dict[str, list[tuple[tuple[str, ...], list[str]]]] = {}
        self._beside: dict[str, tuple[list[str], dict[str, list[str]]]] = {}
        self._names = {self.listing.folder_name(path).lower() for path in self.listing.walk() if path}
        self._collect("", (), False)

    def _collect(self, folder: str, parts: tuple[str, ...], inside: bool) -> None:
        subfolders = self.listing.subfolders(folder)
        if inside:
            self._paths.add(folder)
            self.listing.mark(self.listing.images(folder), MASK_WITHOUT_IMAGE)
            self._folders.setdefault(parts, []).append(folder)
        for path in subfolders:
            name = self.listing.folder_name(path)
            part = None if inside else mask_part(self.listing, path)
            if part is not None and self.reading.benchmark is None:
                self._check_masks(path)
            if part is not None:
                # Test_GroundTruth: a part that is neither a folder nor a class says nothing about the images.
                known = part.lower() in self._names or word_label(part)[0] is not None
                self._collect(path, (*parts, *_parts(part if known else "")), True)
            else:
                self._collect(path, (*parts, *_parts("" if is_image_folder_name(name) else name)), inside)

    def _check_masks(self, path: str) -> None:
        """Refuse a category or a kind of defect that is called mask."""
        inner = map(self.listing.folder_name, self.listing.subfolders(path))
        holds_classes = any(word_label(name)[0] is not None or split_name(name) is not None for name in inner)
        if (holds_classes or _is_beside_normal(self.listing, path)) and holds_photos(self.listing, path):
            raise ValueError(
                f"Folder {path!r} of {str(self.listing.root)!r} has the name of a mask folder but holds photos; "
                "expected masks, most of whose pixels are black or white. Rename the folder."
            )

    @property
    def has_folders(self) -> bool:
        """Whether there is a mask folder."""
        return bool(self._folders)

    def files(self) -> list[str]:
        """Paths of all masks in mask folders."""
        return [
            path for folders in self._folders.values() for folder in folders for path in self.listing.images(folder)
        ]

    def is_mask_folder(self, folder: str) -> bool:
        """Whether a folder is a mask folder or is inside one."""
        return folder in self._paths

    def images(self, folder: str) -> list[str]:
        """Images directly in a folder, without the masks beside them."""
        return self._split(folder)[0]

    def masks_beside(self, folder: str) -> bool:
        """Whether there are masks beside the images of a folder."""
        return bool(self._split(folder)[1])

    def __call__(self, image: str, label: int | None, kind: str = "") -> list[str]:
        """
        Masks of an image.

        Args:
            image (`str`): path of the image.
            label (`int`, *optional*): label. A normal image only has masks in a folder with the name of its class.
            kind (`str`, defaults to `""`): name of the class folder.

        Returns:
            `list[str]`: paths of the masks. Several paths mean that the right one is not known.
        """
        folder = image.rpartition("/")[0]
        found = list(self._split(folder)[1].get(image, ()))
        for parts, folders in self._groups_of(folder):
            if label == 0 and kind.lower() not in parts:
                continue
            masks = [mask for masks in folders for mask in self._finder(masks)(image)]
            if masks:
                return found + masks
        return found

    def add_masks_of_normal_images(self, rows: list[Row]) -> None:
        """Give masks that no anomalous image uses to the normal images they match."""
        if not self._folders or self.reading.benchmark is not None:
            return
        used = {row.mask for row in rows}
        for row in rows:
            if row.label != 0:
                used.update(self._all(row.image))
        for row in rows:
            if row.label == 0 and row.mask is None:
                masks = self(row.image, None)
                if len(masks) == 1 and masks[0] not in used:
                    row.mask = masks[0]

    def _all(self, image: str) -> list[str]:
        """Masks in all folders that belong to an image."""
        groups = self._groups_of(image.rpartition("/")[0])
        return [mask for _, folders in groups for masks in folders for mask in self._finder(masks)(image)]

    def _finder(self, folder: str) -> MaskFinder:
        if folder not in self._finders:
            self._finders[folder] = MaskFinder(self.listing, folder)
        return self._finders[folder]

    def _groups_of(self, folder: str) -> list[tuple[tuple[str, ...], list[str]]]:
        """Mask folders of the images in a folder, those with most parts in common first."""
        if folder not in self._groups:
            names = folder.split("/") if folder else []
            image_parts = [part for name in names if not is_image_folder_name(name) for part in _parts(name)]
            has_split = any(split_name(part) is not None for part in image_parts)
            possible: set[tuple[str, ...]] = {()}
            for part in image_parts:
                possible |= {(*before, part) for before in possible}
            groups = []
            for parts, folders in self._folders.items():
                key = parts if has_split else tuple(part for part in parts if split_name(part) is None)
                if key in possible:
                    groups.append((parts, folders))
            self._groups[folder] = sorted(groups, key=lambda group: -len(group[0]))
        return self._groups[folder]

    def _split(self, folder: str) -> tuple[list[str], dict[str, list[str]]]:
        if folder not in self._beside:
            images = self.listing.images(folder)
            found = (images, {}) if self.reading.benchmark is not None else split_masks(self.reading, images)
            self._beside[folder] = found
        return self._beside[folder]


def mask_part(listing: Listing, path: str) -> str | None:
    """The rest of the name of a mask folder, such as `bad` of `bad_masks`. None if the folder is not a mask folder."""
    name = listing.folder_name(path)
    part = mask_folder_part(name)
    if part is None or name.lower() not in _WEAK_FOLDERS:
        return part
    return None if _is_beside_normal(listing, path) and holds_photos(listing, path) else part


def _is_beside_normal(listing: Listing, path: str) -> bool:
    siblings = listing.subfolders(path.rpartition("/")[0])
    return any(word_label(listing.folder_name(one))[0] == 0 for one in siblings)


def _parts(name: str) -> tuple[str, ...]:
    return (name.lower(),) if name else ()


def images_below(reading: Reading, masks: MaskIndex, folder: str, label: int | None) -> Iterator[tuple[str, str]]:
    """
    Images in a class folder and its subfolders, without masks and folders of results.

    Args:
        reading (`Reading`): dataset.
        masks ([`MaskIndex`]): its masks.
        folder (`str`): class folder, or a folder of images without labels.
        label (`int`, *optional*): label of the class folder.

    Returns:
        `Iterator[tuple[str, str]]`: path of each image and the name of the subfolder directly below the class folder,
        empty for images directly in it.

    Raises:
        ValueError: if a subfolder is called train, test or validation.
    """
    listing = reading.listing
    waiting = [(folder, "")]
    while waiting:
        current, kind = waiting.pop(0)
        for image in masks.images(current):
            yield image, kind
        inner = [path for path in listing.subfolders(current) if not masks.is_mask_folder(path)]
        has_colors = any(listing.folder_name(path).lower() == "rgb" for path in inner)
        below = []
        for path in inner:
            name = listing.folder_name(path)
            if has_colors and name.lower() != "rgb":
                reading.warn(OTHER_VIEWS, *_mark_images(listing, path, OTHER_VIEWS))
            elif is_no_class(name) and listing.has_images(path):
                listing.mark(listing.below(path), NO_CLASS)
            elif split_name(name) is not None and label is not None and listing.has_images(path):
                raise ValueError(
                    f"Folder {str(listing.root)!r} has the split {path!r} inside a class folder; expected class "
                    "folders inside split folders, such as test/good and train/good."
                )
            else:
                if label is not None and word_label(name)[0] == 1 - label and listing.has_images(path):
                    reading.warn(CONTRADICTION, path)
                below.append((path, kind or ("" if is_image_folder_name(name) else name)))
        waiting = below + waiting


def _mark_images(listing: Listing, folder: str, reason: str) -> list[str]:
    paths = [path for path in listing.below(folder) if has_image_extension(path)]
    listing.mark(paths, reason)
    return paths


__all__ = ["MASK_FOLDERS", "MaskFinder", "MaskIndex", "images_below", "mask_part"]
