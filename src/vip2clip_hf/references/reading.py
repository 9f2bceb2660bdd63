"""Read photos of good parts: what can be read, and which of them show the same picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..data.image_hashes import picture_hash, same_pictures
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.reference_records_vip2clip import photo_hash
from .photos import Photo


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
    digest = photo_hash(image)
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


__all__ = ["ReadPhotos", "near_duplicates", "read_photo", "read_photos"]
