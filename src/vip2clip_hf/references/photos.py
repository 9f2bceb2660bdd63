"""Photos of good parts: their names, and which of them become references."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..models.vip2clip.image_listing_vip2clip import list_images, mask_folder_part, mask_stem


# Of more photos, a part is used as references and the others choose the thresholds.
MAX_REFERENCES = 200


@dataclass(frozen=True)
class Photo:
    """
    A photo to read.

    Args:
        name (`str`): path below the folder, or `photo N`.
        source: the photo, in any form that the pipeline accepts.
    """

    name: str
    source: Any


def list_photos(photos: Any, recursive: bool = True) -> list[Photo]:
    """
    List photos with their names.

    Args:
        photos (`str`, `os.PathLike` or iterable): folder, or photos in any form that the pipeline accepts.
        recursive (`bool`, defaults to `True`): whether to include the subfolders of a folder.

    Returns:
        `list[Photo]`: the photos, with different names.

    Raises:
        OSError: if the folder cannot be read.
        ValueError: if there are no photos, or a path is not a folder.
    """
    if isinstance(photos, (str, os.PathLike)):
        if not os.path.isdir(photos):
            raise ValueError(f"{os.fspath(photos)!r} is not a folder; expected a folder of photos of good parts.")
        paths = list_images(photos, recursive)
        names = [os.path.relpath(path, photos).replace(os.sep, "/") for path in paths]
        sources: list[Any] = list(paths)
    else:
        sources = list(photos) if isinstance(photos, Iterable) else [photos]
        names = [_name(source, number) for number, source in enumerate(sources)]
    if not sources:
        raise ValueError("There are no photos; expected at least one photo of a good part.")
    found: dict[str, Any] = {}
    for name, source in zip(names, sources):
        name = name.encode("utf-8", "replace").decode()  # names of files are not always text
        unique, number = name, 1
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found[unique] = source
    return [Photo(name, source) for name, source in found.items()]


def _name(source: Any, number: int) -> str:
    path = source.get("path") if isinstance(source, dict) else source
    if not isinstance(path, (str, os.PathLike)) or len(os.fsdecode(path)) > 1024:
        return f"photo {number + 1}"
    return os.path.basename(os.fsdecode(path))


def without_masks(photos: Sequence[Photo]) -> tuple[list[Photo], list[str]]:
    """
    Leave out masks of defects in the same folder: files in a folder for masks, and `1_mask` next to `1`.

    Args:
        photos (`Sequence[Photo]`): photos of defects.

    Returns:
        `tuple[list[Photo], list[str]]`: the photos, and the names of the masks.
    """
    stems = {PurePosixPath(photo.name).stem for photo in photos}
    masks = []
    for photo in photos:
        path = PurePosixPath(photo.name)
        in_folder = any(mask_folder_part(part) is not None for part in path.parts[:-1])
        if in_folder or mask_stem(path.stem) in stems - {path.stem}:
            masks.append(photo.name)
    if len(masks) == len(photos):  # a folder that is only called like one of masks
        return list(photos), []
    return [photo for photo in photos if photo.name not in masks], masks


def split_photos(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """
    Split more than 200 photos into references and photos that choose the thresholds.

    Args:
        photos (`Sequence[Photo]`): the photos.

    Returns:
        `tuple[list[Photo], list[Photo]]`: references, half of the photos but at most 200, spread over all of them;
        and the others. Up to 200 photos are all references.
    """
    if len(photos) <= MAX_REFERENCES:
        return list(photos), []
    count = min(MAX_REFERENCES, len(photos) // 2)
    chosen = {number * len(photos) // count for number in range(count)}
    return [photos[number] for number in sorted(chosen)], [
        photo for number, photo in enumerate(photos) if number not in chosen
    ]


__all__ = ["MAX_REFERENCES", "Photo", "list_photos", "split_photos", "without_masks"]
