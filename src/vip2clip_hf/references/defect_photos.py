"""Photos of defects and their masks."""

import os
from typing import Any

from ..data.layouts.flat import FLAT
from ..data.loading import index_folder
from .photos import Photo, list_photos, without_masks
from .summary import named


def list_defects(photos: Any, recursive: bool = True) -> tuple[list[Photo], dict[str, str], list[str]]:
    """
    List photos of defects. In a labelled dataset, these are its anomalous test images.

    Args:
        photos (`str`, `os.PathLike` or iterable): folder, or photos in any form that the pipeline accepts. A folder
            can have any layout of [`load_folder`], with masks.
        recursive (`bool`, defaults to `True`): whether to include subfolders. Without them, masks are not used.

    Returns:
        `tuple[list[Photo], dict[str, str], list[str]]`: the photos, the path of the mask by name of the photo, and
        what was decided.

    Raises:
        OSError: if the folder cannot be read.
        ValueError: if there are no photos, or a path is not a folder.
    """
    if isinstance(photos, (str, os.PathLike)) and os.path.isdir(photos) and recursive:
        labelled = _labelled(photos)
        if labelled is not None:
            return labelled
    listed, masks = without_masks(list_photos(photos, recursive))
    ignored = f"{len(masks)} files of the photos of defects look like masks and are not used: {named(masks)}."
    return listed, {}, [ignored] if masks else []


def _labelled(folder: str | os.PathLike) -> tuple[list[Photo], dict[str, str], list[str]] | None:
    """Read a dataset with labels or masks. `None` for a folder of photos only."""
    try:
        index = index_folder(folder)
    except ValueError:  # no layout, or several
        return None
    if index.layout is FLAT or all(row.label is None for row in index.rows):
        return None
    # With images and masks only, photos without a mask are labelled normal. Here, they are photos of defects as well.
    unnamed = index.layout.name == "pairs"
    rows = [row for row in index.rows if row.label == 1 or unnamed]
    if not rows:
        raise ValueError(f"All images in {os.fspath(folder)!r} are labelled normal; expected photos of defects.")
    listing, found, masks = index.reading.listing, [], {}
    for row in rows:
        path = listing.absolute(row.image)
        name = os.path.relpath(path, os.path.abspath(folder)).replace(os.sep, "/").encode("utf-8", "replace").decode()
        found.append(Photo(name, path))
        if row.mask is not None and row.label == 1:
            masks[name] = listing.absolute(row.mask)
    notes = []
    if len(rows) < len(index.rows):
        notes.append(
            f"{len(rows)} of the {len(index.rows)} images in the folder of defects are labelled anomalous; the others "
            "are not used."
        )
    return found, masks, notes


__all__ = ["list_defects"]
