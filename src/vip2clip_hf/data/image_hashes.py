"""Hashes of image contents that survive another format, JPEG compression and renaming.

The hash of a picture has 256 bits: the signs of the lowest 256 frequencies (without the mean) of the discrete cosine
transform of the picture in grey, 64 x 64. Bits of weak frequencies change with compression. They are known from the
evaluated picture and not compared. Two pictures are the same if at most `MAX_DISTANCE` of the other bits differ.
Measured on three sets of photos of one product each (51 hazelnuts, 77 cookies, 686 magnetic tiles):

    the same photo as PNG, or as JPEG of quality 75 or more    found in all cases
    the same photo as WebP of quality 80                       found in 96 to 100 %
    the same photo as JPEG of quality 50                       found in 98 to 100 %
    another photo of the product                               the same for 19 of 814: shots of one tile, not moved

With 64 bits, 177 of the 686 photos of tiles equal another one. A picture without enough structure has the hash of its
exact pixels instead. A uniform picture has no hash, because it does not identify an image.
"""

import base64
import binascii
import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ..models.vip2clip.image_loading_vip2clip import load_image
from .targets import undecoded


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
# Raise the number if the hashes change. Hashes of another method are not compared.
METHOD = "dct-256-1"
SIDE, BITS = 64, 256
WORDS = BITS // 64
MAX_DISTANCE = 1
# Amplitudes below are noise of the compression: in grey values of 0 to 255 for pictures of up to 64 x 64 pixels, less
# for larger ones, because their pixels are averaged, and the least value.
NOISE, LEAST_NOISE = 8.0, 0.25
# Pictures with fewer bits above the noise have the hash of their pixels.
MIN_BITS = 48
# Number of images that are read at once, and of pairs that are compared at once.
_CHUNK, _PAIRS = 256, 1 << 22


@cache
def _frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Rows of the orthonormal DCT, and the positions of the lowest frequencies in its result, by their sum."""
    count = next(count for count in range(SIDE) if count * (count + 1) // 2 > BITS)
    number, position = np.arange(count)[:, None], np.arange(SIDE)[None]
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * number * (2 * position + 1) / (2 * SIDE))
    rows[0] /= np.sqrt(2)
    vertical, horizontal = np.divmod(np.arange(count * count), count)
    order = np.argsort((vertical + horizontal) * count + vertical, kind="stable")
    return rows, order[1 : BITS + 1]


def picture_hash(picture: Image.Image) -> np.ndarray | None:
    """
    Compute the hash of a picture.

    Args:
        picture (`PIL.Image.Image`): picture in mode RGB.

    Returns:
        `np.ndarray` of shape `(2, 4)`, uint64, *optional*: 256 bits, and which of them do not change with compression.
        `None` for a uniform picture.
    """
    pixels = np.asarray(picture)
    if (pixels == pixels[0, 0]).all():
        return None
    small = np.asarray(picture.convert("F").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    rows, order = _frequencies()
    amplitudes = (rows @ small @ rows.T).ravel()[order]
    averaged = max(1.0, math.sqrt(picture.width * picture.height) / SIDE)
    strong = np.abs(amplitudes) > max(NOISE / averaged, LEAST_NOISE)
    if strong.sum() < MIN_BITS:
        strong[:] = True
        digest = hashlib.sha256(b"%d x %d:" % picture.size + picture.tobytes()).digest()
    else:
        digest = np.packbits(amplitudes > 0).tobytes()
    return np.frombuffer(digest + np.packbits(strong).tobytes(), dtype="<u8").astype(np.uint64).reshape(2, WORDS)


def image_hashes(dataset: "Dataset") -> np.ndarray:
    """
    Compute the hash of every image. All images are opened. Uniform images and images that cannot be read are left out
    with a warning.

    Args:
        dataset (`datasets.Dataset`): dataset returned by [`load_folder`] or [`load_benchmark`].

    Returns:
        `np.ndarray` of shape `(num_images, 2, 4)`, uint64: results of `picture_hash`, of the images that have one.

    Raises:
        ImportError: if `datasets` is not installed.
    """
    images = undecoded(dataset).select_columns(["image"])
    unreadable: list[str] = []

    def hash_of(image: Mapping[str, Any]) -> np.ndarray | None:
        try:
            return picture_hash(load_image(image))
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            return None

    found: list[np.ndarray] = []
    # On a terminal only, and not for a few images.
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(images), desc="hashing images", disable=None if len(images) >= _CHUNK else True) as bar,
    ):
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]["image"]
            found += [one for one in pool.map(hash_of, chunk) if one is not None]
            bar.update(len(chunk))
    if uniform := len(images) - len(found) - len(unreadable):
        logger.warning(f"{uniform} of {len(images)} images are uniform and are not compared with training images.")
    if unreadable:
        logger.warning(
            f"{len(unreadable)} of {len(images)} images cannot be read and are not compared with training images: "
            f"{unreadable[0]}"
        )
    return np.stack(found) if found else np.zeros((0, 2, WORDS), dtype=np.uint64)


def pack_hashes(hashes: np.ndarray) -> dict[str, str]:
    """
    Pack hashes for a JSON file: 43 characters per different image.

    Args:
        hashes (`np.ndarray` of shape `(num_images, 2, 4)`, uint64): result of `image_hashes`.

    Returns:
        `dict[str, str]`: `method` and, in base64, `data`. Sorted, so the order of the images is not published.
    """
    unique = np.unique(hashes[:, 0], axis=0)
    return {"method": METHOD, "data": base64.b64encode(unique.astype("<u8").tobytes()).decode()}


def unpack_hashes(packed: Any) -> np.ndarray | None:
    """
    Unpack the result of `pack_hashes`.

    Args:
        packed: the value from a JSON file.

    Returns:
        `np.ndarray` of shape `(num_images, 4)`, uint64, *optional*: `None` if the value is not a result of
        `pack_hashes`, or one with another method.
    """
    if not isinstance(packed, Mapping) or packed.get("method") != METHOD:
        return None
    try:
        content = base64.b64decode(packed["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    if len(content) % (8 * WORDS):
        return None
    return np.frombuffer(content, dtype="<u8").astype(np.uint64).reshape(-1, WORDS)


def among(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Find the images that are among other images.

    Args:
        hashes (`np.ndarray` of shape `(n, 2, 4)`, uint64): result of `image_hashes`.
        others (`np.ndarray` of shape `(m, 4)`, uint64): result of `unpack_hashes`.

    Returns:
        `np.ndarray` of shape `(n,)`, bool: whether at most `MAX_DISTANCE` bits differ from one of the others.
    """
    found = np.zeros(len(hashes), dtype=bool)
    step = max(1, _PAIRS // max(1, len(others)))
    for start in range(0, len(hashes), step):
        bits, strong = hashes[start : start + step].transpose(1, 0, 2)
        # The first word already excludes nearly all pairs.
        first = _count_bits((bits[:, None, 0] ^ others[None, :, 0]) & strong[:, None, 0])
        rows, columns = np.nonzero(first <= MAX_DISTANCE)
        distances = _count_bits((bits[rows] ^ others[columns]) & strong[rows]).sum(axis=1, dtype=np.int64)
        found[start + rows[distances <= MAX_DISTANCE]] = True
    return found


def same_pictures(hashes: np.ndarray) -> list[tuple[int, int]]:
    """
    Find the images that show the same picture as an earlier one.

    Args:
        hashes (`np.ndarray` of shape `(n, 2, 4)`, uint64): results of `picture_hash`.

    Returns:
        `list[tuple[int, int]]`: position of each such image, and of the first one with the same picture.
    """
    found = []
    for position in range(1, len(hashes)):
        bits, strong = hashes[position]
        same = np.flatnonzero(_count_bits((bits[0] ^ hashes[:position, 0, 0]) & strong[0]) <= MAX_DISTANCE)
        distances = _count_bits((bits ^ hashes[same, 0]) & strong).sum(axis=1, dtype=np.int64)
        if (distances <= MAX_DISTANCE).any():
            found.append((position, int(same[distances <= MAX_DISTANCE][0])))
    return found


def _count_bits(words: np.ndarray) -> np.ndarray:
    """Number of set bits of every word."""
    if hasattr(np, "bitwise_count"):  # from numpy 2.0
        counts: np.ndarray = np.bitwise_count(words)
        return counts
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> np.uint64(2)) & np.uint64(0x3333333333333333))
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)


__all__ = ["among", "image_hashes", "pack_hashes", "picture_hash", "same_pictures", "unpack_hashes"]
