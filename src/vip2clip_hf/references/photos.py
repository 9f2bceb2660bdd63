"""Photos of good parts: names, what can be read, and which of them show the same picture."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..data.image_hashes import picture_hash, same_pictures
from ..models.vip2clip.image_listing_vip2clip import list_images
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.reference_building_vip2clip import pixels_hash


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


@dataclass
class ReadPhotos:
    """
    Photos that were read, and those that are left out.

    Args:
        photos (`list[Photo]`): photos with different pixels.
        pictures (`dict[str, np.ndarray]`): hash of the picture by name, see [`picture_hash`]. Without uniform photos.
        unreadable (`dict[str, str]`): photos that cannot be read, and the reason.
        identical (`dict[str, str]`): photos with the pixels of another one, and the name of that one.
    """

    photos: list[Photo] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    identical: dict[str, str] = field(default_factory=dict)


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


def read_photo(
    detector: AnomalyDetectionPipeline, photo: Photo, found: ReadPhotos, first: dict[str, str]
) -> Image.Image | None:
    """
    Read a photo, and leave it out if it cannot be read or is the same as another one.

    Args:
        detector ([`AnomalyDetectionPipeline`]): how photos are read.
        photo ([`Photo`]): the photo.
        found ([`ReadPhotos`]): gets the photo.
        first (`dict[str, str]`): name of the photos so far by the hash of their pixels. Gets the photo.

    Returns:
        `PIL.Image.Image`, *optional*: the photo, or `None` if it is left out.
    """
    try:
        image = detector.load(photo.source)
    except (OSError, ValueError) as error:
        found.unreadable[photo.name] = str(error)
        return None
    digest = pixels_hash(image)
    if digest in first:
        found.identical[photo.name] = first[digest]
        return None
    first[digest] = photo.name
    found.photos.append(photo)
    if (picture := picture_hash(image)) is not None:
        found.pictures[photo.name] = picture
    return image


def read_photos(
    detector: AnomalyDetectionPipeline, photos: Sequence[Photo], first: dict[str, str], progress: bool = False
) -> ReadPhotos:
    """
    Read photos once, to leave out those that cannot be read or are the same as another one.

    Args:
        detector ([`AnomalyDetectionPipeline`]): how photos are read.
        photos (`Sequence[Photo]`): the photos.
        first (`dict[str, str]`): see [`read_photo`].
        progress (`bool`, defaults to `False`): whether to show a progress bar.

    Returns:
        [`ReadPhotos`]: the photos.
    """
    found = ReadPhotos()
    for photo in tqdm(photos, desc="reading", disable=not progress):
        read_photo(detector, photo, found, first)
    return found


def near_duplicates(pictures: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """
    Find photos that show the same picture, for example compressed again, or shots of a part that was not moved.

    Args:
        pictures (`dict[str, np.ndarray]`): hash of the picture by name.

    Returns:
        `list[tuple[str, str]]`: each such photo, and the first one with the same picture.
    """
    names = list(pictures)
    if not names:
        return []
    return [(names[one], names[other]) for one, other in same_pictures(np.stack(list(pictures.values())))]


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


__all__ = [
    "MAX_REFERENCES",
    "Photo",
    "ReadPhotos",
    "list_photos",
    "near_duplicates",
    "read_photo",
    "read_photos",
    "split_photos",
]
