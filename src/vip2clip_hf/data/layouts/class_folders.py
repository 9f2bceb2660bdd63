"""Layout with one folder per class: `normal/` and `anomalous/`, or `no/` and `yes/` for BrainMRI and Br35H."""

from dataclasses import dataclass, field

from ...models.vip2clip.image_listing_vip2clip import is_image_folder_name
from ..listing import Listing, natural_key
from .base import ANOTHER_COPY, NO_CLASS, UNKNOWN_TYPE, Layout, Reading
from .masks import MaskIndex, images_below, mask_part
from .words import is_no_class, simplify, split_name, word_label


SIBLINGS = "folders of unknown names beside the only folder of normal images, read as kinds of defects"
SIMILAR = "folders read by a part of their names"
SETTLE = "Name the normal folders with --normal-label NAME and the anomalous ones with --anomalous-label NAME"
IN_PYTHON = "(normal_labels=[...] and anomalous_labels=[...] in Python)"


@dataclass
class _Classes:
    """Class folders in one folder."""

    labels: dict[str, int] = field(default_factory=dict)  # by path
    types: list[str] = field(default_factory=list)  # folders of unknown names, read as kinds of defects
    guesses: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # reason by path
    unclear: list[str] = field(default_factory=list)


def _find_classes(reading: Reading, folder: str) -> _Classes | None:
    """Class folders directly in a folder. None if no name is known."""
    listing, found = reading.listing, _Classes()
    if reading.benchmark is not None:
        for path in listing.subfolders(folder):
            label = {"no": 0, "yes": 1}.get(listing.folder_name(path).lower())
            if label is not None and (listing.images(path) or listing.subfolders(path)):
                found.labels[path] = label
        return found if found.labels else None
    if reading.names.normal is not None and not any(
        reading.names.lists(listing.folder_name(path)) for path in listing.subfolders(folder)
    ):
        return None
    unknown, normal = [], set()
    for path in listing.subfolders(folder):
        name = listing.folder_name(path)
        if not reading.names.lists(name):
            if mask_part(listing, path) is not None or not (listing.has_images(path) or word_label(name)[0] == 0):
                continue
            if is_no_class(name) or split_name(name) is not None or is_image_folder_name(name):
                found.left_out[path] = NO_CLASS if is_no_class(name) else UNKNOWN_TYPE
                continue
        label, is_guess = reading.names.label(name)
        if label == 0:
            normal.add(_root_of(name))
        if label is None and _holds_classes(reading, path):
            found.left_out[path] = ANOTHER_COPY
        elif label is None:
            unknown.append(path)
        elif listing.has_images(path):
            found.labels[path] = label
            found.guesses += [path] if is_guess else []
    if not found.labels and not (normal and unknown):
        return None
    if reading.names.given and reading.names.normal is not None:
        found.left_out.update(dict.fromkeys(unknown, UNKNOWN_TYPE))
    elif len(normal) == 1:
        found.types = unknown
        found.labels.update(dict.fromkeys(unknown, 1))
    else:
        found.unclear = unknown
    return found


def _root_of(name: str) -> str:
    """The word of a name, without numbers."""
    return "".join(character for character in simplify(name) if character.isalpha())


def _holds_classes(reading: Reading, folder: str) -> bool:
    listing = reading.listing
    return any(reading.names.label(listing.folder_name(path))[0] is not None for path in listing.subfolders(folder))


def _category_folders(reading: Reading) -> list[tuple[str, str, _Classes]]:
    """Folder of each category, the folder with its class folders (the same one, or `images/` in it), and these."""
    listing = reading.listing

    def inside(folder: str) -> tuple[str, str, _Classes] | None:
        classes = _find_classes(reading, folder)
        if classes is not None:
            return folder, folder, classes
        for path in listing.subfolders(folder) if reading.benchmark is None else ():
            if is_image_folder_name(listing.folder_name(path)):
                classes = _find_classes(reading, path)
                if classes is not None:
                    return folder, path, classes
        return None

    root = inside("")
    if root is not None or reading.benchmark is not None:
        return [] if root is None else [root]
    folders = [path for path in listing.subfolders("") if mask_part(listing, path) is None]
    return [found for path in folders if (found := inside(path)) is not None]


def classes_match(reading: Reading) -> bool:
    return bool(_category_folders(reading))


def read_classes(reading: Reading) -> None:
    listing, reading.has_splits = reading.listing, False
    masks = MaskIndex(reading)
    for root, folder, classes in _category_folders(reading):
        if classes.unclear:
            raise ValueError(_describe_unclear(listing, folder, classes))
        category = reading.category_of(root)
        for path, label in sorted(classes.labels.items(), key=lambda item: (item[1], natural_key(item[0]))):
            name = listing.folder_name(path)
            reading.classes.add(name.strip().casefold())
            count = 0
            for image, kind in images_below(reading, masks, path, label):
                defect = name if path in classes.types else kind
                reading.add(image, label, category, masks(image, label, name), defect=defect if label else "")
                count += 1
            if path in classes.types:
                reading.warn(SIBLINGS, f"{path} ({count} images)")
        if classes.guesses:
            labels = (f"{path} ({'anomalous' if classes.labels[path] else 'normal'})" for path in classes.guesses)
            reading.warn(SIMILAR, *labels)
        for path, reason in classes.left_out.items():
            listing.mark(listing.below(path), reason)
        if reading.benchmark is not None:
            _mark_others(reading, folder, classes, masks)
    masks.add_masks_of_normal_images(reading.rows)


def _mark_others(reading: Reading, folder: str, classes: _Classes, masks: MaskIndex) -> None:
    listing = reading.listing
    for path in listing.subfolders(folder):
        if path not in classes.labels and not masks.is_mask_folder(path):
            inside = _find_classes(reading, path)
            listing.mark(listing.below(path), ANOTHER_COPY if inside else UNKNOWN_TYPE)


def _describe_unclear(listing: Listing, folder: str, classes: _Classes) -> str:
    where = str(listing.root / folder)
    normal = [listing.folder_name(path) for path, label in classes.labels.items() if label == 0]
    unclear = ", ".join(listing.folder_name(path) for path in classes.unclear[:8])
    why = f"several folders of normal images ({', '.join(normal)})" if normal else "no folder of normal images"
    return (
        f"Folder {where!r} contains {why} beside folders of unknown meaning ({unclear}); expected exactly one name of "
        f"normal images. {SETTLE} {IN_PYTHON}."
    )


CLASSES = Layout(
    name="classes",
    title="one folder per class",
    matches=classes_match,
    read=read_classes,
    expected="normal/*.png, anomalous/*.png and optionally masks/*.png; no/ and yes/ for BrainMRI and Br35H",
)


__all__ = ["CLASSES", "IN_PYTHON", "SETTLE", "SIMILAR"]
