"""What a bank of references records about its photos."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image


DEFAULT_MAX_PATCHES = 100_000


@dataclass(frozen=True)
class ReferencePhoto:
    """
    A photo of a [`ReferenceBank`].

    Args:
        name (`str`): name of the file, or `photo N`.
        sha256 (`str`): hash of its pixels.
        height, width (`int`): size in pixels.
    """

    name: str
    sha256: str
    height: int
    width: int


@dataclass(frozen=True)
class ReferenceOptions:
    """
    How the photos of a [`ReferenceBank`] were read. Only banks with the same options can be merged.

    Args:
        tile_size (`int`, defaults to 0), tile_overlap (`float`, defaults to 0.25): tiles, as in the pipeline.
        rotations (`bool`, defaults to `False`): whether every photo is also stored turned and mirrored (8 variants).
        aligned (`bool`, defaults to `False`): whether distances are compared with those of the references at the same
            place of the photo.
        max_patches (`int`, *optional*, defaults to 100,000): largest number of stored patches.
        weight (`float`, *optional*): weight of the zero-shot logit in the score, at least 0. By default, it is
            computed from the photos.
    """

    tile_size: int = 0
    tile_overlap: float = 0.25
    rotations: bool = False
    aligned: bool = False
    max_patches: int | None = DEFAULT_MAX_PATCHES
    weight: float | None = None


@dataclass(frozen=True)
class LeftOutPhoto:
    """
    A reference, scored like a new photo with the other references.

    Args:
        photo ([`ReferencePhoto`]): the photo.
        score (`float`): its score, in [0, 1].
        anomaly_map (`np.ndarray` of shape `(height, width)`): its map at the size of the model, or of the photo with
            tiles, float32 in [0, 1].
        zero_shot_score (`float`): its zero-shot score, in [0, 1].
        distance (`float`): mean of the largest percent of its distance map, in [0, 2].
    """

    photo: ReferencePhoto
    score: float
    anomaly_map: np.ndarray
    zero_shot_score: float
    distance: float


def photo_hash(image: Image.Image) -> str:
    """
    Compute the hash of the pixels of a photo, to recognize it among references.

    Args:
        image (`PIL.Image.Image`): the upright photo, in mode RGB, as [`AnomalyDetectionPipeline.load`] returns it.

    Returns:
        `str`: 16 hexadecimal digits, the `sha256` of a [`ReferencePhoto`].
    """
    return hashlib.sha256(b"%d x %d:" % image.size + image.tobytes()).hexdigest()[:16]


__all__ = ["DEFAULT_MAX_PATCHES", "LeftOutPhoto", "ReferenceOptions", "ReferencePhoto", "photo_hash"]
