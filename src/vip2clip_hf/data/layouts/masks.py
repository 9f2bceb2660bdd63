"""Match masks to images by file name."""

from ..listing import MASK_WITHOUT_IMAGE, Listing, stem


MASK_FOLDERS = ("ground_truth", "ground truth", "groundtruth", "gt", "masks", "mask")
MASK_SUFFIXES = ("_mask", "_label", "_segmentation")


class MaskFinder:
    """
    Index of the masks in a folder by stem, with and without the suffix `_mask`, `_label` or `_Segmentation` (in any
    case). Masks are never matched by sort order, where one extra file shifts all pairs after it.

    Args:
        listing (`Listing`): files of the dataset.
        folder (`str`, *optional*): mask folder. None if there is no mask folder.
        prefix (`str`, defaults to `""`): prefix of masks stored next to the images, in lower case. It is not part of
            the stem.
        suffix (`str`, defaults to `""`): suffix of masks stored next to the images, in lower case. One of the suffixes
            above; the stem is then only used without it.
    """

    def __init__(self, listing: Listing, folder: str | None, prefix: str = "", suffix: str = "") -> None:
        self.by_stem: dict[str, list[str]] = {}
        for path in listing.images(folder) if folder is not None else ():
            name = stem(path)
            lower = name.lower()
            if not lower.startswith(prefix) or not lower.endswith(suffix):
                continue
            listing.mark([path], MASK_WITHOUT_IMAGE)
            name, lower = name[len(prefix) :], lower[len(prefix) :]
            known = next((s for s in MASK_SUFFIXES if lower.endswith(s) and len(lower) > len(s)), "")
            for key in {name[: len(name) - len(known)]} if suffix else {name, name[: len(name) - len(known)]}:
                self.by_stem.setdefault(key, []).append(path)

    def __call__(self, image: str) -> list[str]:
        """Paths of the masks of an image. Several paths mean that the file names are ambiguous."""
        return self.by_stem.get(stem(image), [])


def mask_folder(listing: Listing, folder: str) -> str | None:
    """Path of the mask folder directly in a folder, or None."""
    found = listing.find_folder(folder, *MASK_FOLDERS)
    if found is None:  # ISBI2016_ISIC_Part1_Test_GroundTruth
        found = next((f for f in listing.subfolders(folder) if f.lower().endswith("groundtruth")), None)
    return found


__all__ = ["MASK_FOLDERS", "MaskFinder", "mask_folder"]
