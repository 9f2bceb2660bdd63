"""Checks that open every image and mask. Run by `vip2clip data --check`."""

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..models.vip2clip.image_loading_vip2clip import load_image, load_mask
from .index import DataIndex


BAD_IMAGE = "unreadable images"
BAD_MASK = "unreadable masks"
MASK_SIZE = "masks with a different size than the image"
CONTRADICTION = "normal images with anomalous pixels in the mask"
EMPTY_MASK = "anomalous images with an empty mask at this mask threshold, still counted as anomalous"
LOSSY_MASK = "masks with noise near 0 counted as anomalous; use a mask threshold of 127 for JPEG masks"
DUPLICATE = "duplicate images (identical files), all kept"


@dataclass
class DataCheck:
    """
    Result of opening every image and mask. Use `str(check)` for text and `check.to_dict()` for JSON.

    Args:
        checked (`int`): number of images opened.
        usable (`DataIndex`): the index without unreadable images. Unusable masks are set to null; images stored
            inside a dataset (Parquet, Hub) are dropped together with an unusable mask.
        problems (`dict[str, list[str]]`): images that are unusable or have an unusable mask, grouped by problem.
        notes (`dict[str, list[str]]`): images with harmless peculiarities, grouped by kind.
    """

    checked: int
    usable: DataIndex
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the number of images, the problems and the notes as JSON types."""
        return {"checked": self.checked, "problems": self.problems, "notes": self.notes}

    def __str__(self) -> str:
        count = sum(map(len, self.problems.values()))
        found = f"{count or 'no'} problem{'' if count == 1 else 's'}"
        lines = [f"Checked {self.checked} images and their masks: {found}."]
        for title, groups, most in (("Problems:", self.problems, None), ("Notes:", self.notes, 3)):
            if groups:
                lines += ["", title]
            for kind, names in groups.items():
                lines.append(f"  {kind} ({len(names)}):")
                lines += [f"    {name}" for name in names[:most]]
                lines += ["    ..."] if most is not None and len(names) > most else []
        return "\n".join(lines)


@dataclass
class _Result:
    """What opening one image and its mask shows."""

    problem: str | None = None
    detail: str = ""
    num_anomalous_pixels: int | None = None  # None if there is no usable mask
    is_noisy: bool = False
    digest: bytes | None = None


def check_data(
    index: DataIndex,
    mask_threshold: int | float | None = None,
    num_workers: int = 4,
    progress: bool = False,
    bit_depth: int | None = None,
    page: int | None = None,
) -> DataCheck:
    """
    Open every image and mask of an index and compare them.

    Args:
        index (`DataIndex`):
            Index returned by [`index_folder`] or [`index_benchmark`].
        mask_threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous. Defaults to the threshold of the benchmark, or to 0.
        num_workers (`int`, defaults to 4):
            Number of threads.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.
        bit_depth, page (*optional*):
            How to read images, see [`load_image`].

    Returns:
        `DataCheck`: problems and notes. `check.usable.to_dataset()` is the dataset without unusable images and masks.

    Raises:
        ValueError: if `num_workers` is less than 1.
    """
    if mask_threshold is None:
        mask_threshold = index.benchmark.mask_threshold if index.benchmark is not None else 0
    read, reading = _reader(index), {"bit_depth": bit_depth, "page": page}
    check = DataCheck(len(index.rows), index)
    bad_images: set[str] = set()
    bad_masks: set[str] = set()
    first_names: dict[bytes, str] = {}
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda number: _check_one(*read(number), mask_threshold, reading), range(len(index.rows)))
        for row, result in zip(index.rows, tqdm(results, total=len(index.rows), disable=not progress, unit="image")):
            if result.problem is not None:
                check.problems.setdefault(result.problem, []).append(f"{row.image} ({result.detail})")
                (bad_images if result.problem == BAD_IMAGE else bad_masks).add(row.image)
            if result.num_anomalous_pixels is not None:
                if row.label == 0 and result.num_anomalous_pixels:
                    name = f"{row.image} ({result.num_anomalous_pixels} px)"
                    check.problems.setdefault(CONTRADICTION, []).append(name)
                    bad_masks.add(row.image)
                if row.label == 1 and not result.num_anomalous_pixels:
                    check.notes.setdefault(EMPTY_MASK, []).append(row.image)
                if result.is_noisy:
                    check.notes.setdefault(LOSSY_MASK, []).append(row.image)
            if result.digest in first_names:
                check.notes.setdefault(DUPLICATE, []).append(f"{row.image} (same as {first_names[result.digest]})")
            elif result.digest is not None:
                first_names[result.digest] = row.image
    if bad_images or bad_masks:
        check.usable = _without(index, bad_images, bad_masks)
    return check


def _reader(index: DataIndex) -> Callable[[int], tuple[Any, Any]]:
    """Function that returns the image and mask of a row, not decoded."""
    if index.source is None:
        listing = index.reading.listing

        def read_paths(number: int) -> tuple[Any, Any]:
            row = index.rows[number]
            return listing.absolute(row.image), None if row.mask is None else listing.absolute(row.mask)

        return read_paths
    stored = index.source.select_columns(["image", "mask"]).with_format("arrow")

    def read_stored(number: int) -> tuple[Any, Any]:
        row = stored[number]
        return row["image"][0].as_py(), row["mask"][0].as_py()

    return read_stored


def _check_one(image: Any, mask: Any, mask_threshold: float, reading: dict[str, Any]) -> _Result:
    try:
        if not isinstance(image, dict) or image.get("bytes") is None:
            path = image["path"] if isinstance(image, dict) else image
            image = {"bytes": Path(path).read_bytes(), "path": path}
        width, height = load_image(image, **reading).size
        digest = hashlib.sha256(image["bytes"]).digest()
    except (OSError, ValueError) as error:
        return _Result(BAD_IMAGE, str(error))
    if mask is None:
        return _Result(digest=digest)
    try:
        values = load_mask(mask)
    except (OSError, ValueError) as error:
        return _Result(BAD_MASK, str(error), digest=digest)
    if values.shape != (height, width):
        detail = f"mask {values.shape[1]} x {values.shape[0]}, image {width} x {height} pixels"
        return _Result(MASK_SIZE, detail, digest=digest)
    anomalous = values > mask_threshold
    # Values near 0 next to values near 255 are compression noise. Class ids and clean masks do not have both.
    is_noisy = bool(values.max() > 200 and (anomalous & (values < 55)).any())
    return _Result(num_anomalous_pixels=int(anomalous.sum()), is_noisy=is_noisy, digest=digest)


def _without(index: DataIndex, bad_images: set[str], bad_masks: set[str]) -> DataIndex:
    if index.source is not None:  # a stored mask cannot be removed without its row
        kept = [number for number, row in enumerate(index.rows) if row.image not in bad_images | bad_masks]
        return dataclasses.replace(
            index, rows=[index.rows[number] for number in kept], source=index.source.select(kept)
        )
    rows = [
        dataclasses.replace(row, mask=None) if row.image in bad_masks else row
        for row in index.rows
        if row.image not in bad_images
    ]
    return dataclasses.replace(index, rows=rows)


__all__ = ["DataCheck", "check_data"]
