"""Find the mask of an image by its file name."""

from ..listing import MASK_WITHOUT_IMAGE, Listing, stem


MASK_FOLDERS = ("ground_truth", "ground truth", "groundtruth", "gt", "masks", "mask")
MASK_SUFFIXES = ("_mask", "_label", "_segmentation")


class MaskFinder:
    """
    Masks of a folder by stem, after one known suffix (`_mask`, `_label`, `_Segmentation`, in any case) is taken off.
    Never by sort order: there, one stray file shifts every pair behind it.

    Args:
        listing (`Listing`): what there is.
        folder (`str`, *optional*): folder of the masks; None where there is none.
        prefix (`str`, defaults to `""`): what masks carry in front of the stem, where they lie beside the images.
        suffix (`str`, defaults to `""`): the same behind it.
    """

    def __init__(self, listing: Listing, folder: str | None, prefix: str = "", suffix: str = ""):
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
        """The masks of an image: none, one, or several where files compete."""
        return self.by_stem.get(stem(image), [])


def mask_folder(listing: Listing, folder: str) -> str | None:
    found = listing.find_folder(folder, *MASK_FOLDERS)
    if found is None:  # ISBI2016_ISIC_Part1_Test_GroundTruth
        found = next((f for f in listing.subfolders(folder) if f.lower().endswith("groundtruth")), None)
    return found


__all__ = ["MASK_FOLDERS", "MaskFinder", "mask_folder"]
