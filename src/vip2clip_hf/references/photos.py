"""Photos of good parts: their names, and which of them become references."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.vip2clip.image_listing_vip2clip import list_images


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


__all__ = ["MAX_REFERENCES", "Photo", "list_photos", "split_photos"]
