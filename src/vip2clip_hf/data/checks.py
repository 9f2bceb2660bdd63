"""Checks that open every image and mask. Run by `vip2clip data --check`."""

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.image_notices_vip2clip import collect_notices
from ..models.vip2clip.mask_loading_vip2clip import MASK_RULES, MaskSizeError, read_mask
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from ..models.vip2clip.mask_regions_vip2clip import reduce_mask
from .index import DataIndex
from .mask_checks import suspicious_masks


BAD_IMAGE = "unreadable images"
BAD_MASK = "unreadable masks"
MASK_SIZE = "masks with a different size than the image"
CONTRADICTION = "normal images with anomalous pixels in the mask"
SMALL_REGIONS = "masks with defects that have no pixel at 518 x 518, the size of a model; they keep at least one pixel"
DUPLICATE = "duplicate images (identical files), all kept"
# Size of a ViT-L/14 checkpoint of the paper.
MODEL_SIZE = (518, 518)


@dataclass
class DataCheck:
    """
    Result of opening every image and mask. Use `str(check)` for text and `check.to_dict()` for JSON.

    Args:
        checked (`int`): number of images opened.
        usable (`DataIndex`): the index without unreadable images. Unusable masks are set to null; images stored
            inside a dataset (Parquet, Hub) are dropped together with an unusable mask.
        problems (`dict[str, list[str]]`): images that are unusable or have an unusable mask, grouped by problem.
        warnings (`dict[str, list[str]]`): images with a suspicious mask (empty, marked as a whole, probably inverted),
            and images with a mask that is read by a rule because it has several meanings, grouped by kind.
        notes (`dict[str, list[str]]`): images with harmless peculiarities, grouped by kind.
    """

    checked: int
    usable: DataIndex
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the number of images, the problems, the warnings and the notes as JSON types."""
        return {
            "checked": self.checked,
            "problems": self.problems,
            "warnings": self.warnings,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        count = sum(map(len, self.problems.values()))
        found = f"{count or 'no'} problem{'' if count == 1 else 's'}"
        suspicious = sum(map(len, self.warnings.values()))
        found += f", {suspicious} warning{'' if suspicious == 1 else 's'}" if suspicious else ""
        lines = [f"Checked {self.checked} images and their masks: {found}."]
        groups_of = (("Problems:", self.problems, None), ("Warnings:", self.warnings, 3), ("Notes:", self.notes, 3))
        for title, groups, most in groups_of:
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
    share: float = 0.0
    num_small_regions: int = 0
    rules: tuple[str, ...] = ()
    digest: bytes | None = None
    notices: list[str] = field(default_factory=list)  # what was converted or guessed in the photo


def check_data(
    index: DataIndex,
    mask_threshold: int | float | None = None,
    num_workers: int = 4,
    progress: bool = False,
    mask_options: MaskOptions | None = None,
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
        mask_options ([`MaskOptions`], *optional*):
            How to read masks.
        bit_depth, page (*optional*):
            How to read images, see [`load_image`].

    Returns:
        `DataCheck`: problems, warnings and notes. `check.usable.to_dataset()` is the dataset without unusable images
        and masks.

    Raises:
        ValueError: if `num_workers` is less than 1.
    """
    options = MaskOptions(threshold=mask_threshold).over(mask_options or MaskOptions())
    if index.benchmark is not None:
        options = options.over(MaskOptions(threshold=index.benchmark.mask_threshold))
    read, reading = _reader(index), {"bit_depth": bit_depth, "page": page}
    check = DataCheck(len(index.rows), index)
    bad_images: set[str] = set()
    bad_masks: set[str] = set()
    first_names: dict[bytes, str] = {}
    anomalous: dict[str, float] = {}
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda number: _check_one(*read(number), options, reading), range(len(index.rows)))
        for row, result in zip(index.rows, tqdm(results, total=len(index.rows), disable=not progress, unit="image")):
            if result.problem is not None:
                check.problems.setdefault(result.problem, []).append(f"{row.image} ({result.detail})")
                (bad_images if result.problem == BAD_IMAGE else bad_masks).add(row.image)
            if result.num_anomalous_pixels is not None:
                if row.label == 0 and result.num_anomalous_pixels:
                    whole = ", the whole image; if the masks are inverted, set mask_invert"
                    name = f"{row.image} ({result.num_anomalous_pixels} px{whole if result.share == 1 else ''})"
                    check.problems.setdefault(CONTRADICTION, []).append(name)
                    bad_masks.add(row.image)
                if row.label == 1:
                    anomalous[row.image] = result.share
                if result.num_small_regions:
                    name = f"{row.image} ({result.num_small_regions})"
                    check.notes.setdefault(SMALL_REGIONS, []).append(name)
                for rule in result.rules:
                    check.warnings.setdefault(MASK_RULES[rule], []).append(row.image)
            for message in result.notices:
                check.warnings.setdefault(message.rstrip("."), []).append(row.image)
            if result.digest in first_names:
                check.notes.setdefault(DUPLICATE, []).append(f"{row.image} (same as {first_names[result.digest]})")
            elif result.digest is not None:
                first_names[result.digest] = row.image
    check.warnings.update(suspicious_masks(list(anomalous), list(anomalous.values())))
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


def _check_one(image: Any, mask: Any, options: MaskOptions, reading: dict[str, Any]) -> _Result:
    if image is None or (isinstance(image, dict) and image.get("bytes") is None and image.get("path") is None):
        return _Result(BAD_IMAGE, "the row has no image")
    try:
        if not isinstance(image, dict) or image.get("bytes") is None:
            path = image["path"] if isinstance(image, dict) else image
            image = {"bytes": Path(path).read_bytes(), "path": path}
        with collect_notices() as notices:
            width, height = load_image(image, **reading).size
        digest = hashlib.sha256(image["bytes"]).digest()
    except (OSError, ValueError) as error:
        return _Result(BAD_IMAGE, str(error))
    if mask is None:
        return _Result(digest=digest, notices=notices)
    try:
        read = read_mask(mask, options, image)
    except MaskSizeError as error:
        return _Result(MASK_SIZE, str(error), digest=digest, notices=notices)
    except (OSError, ValueError) as error:
        return _Result(BAD_MASK, str(error), digest=digest, notices=notices)
    marked = read.marked
    if marked.shape != (height, width):
        detail = f"mask {marked.shape[1]} x {marked.shape[0]}, image {width} x {height} pixels"
        return _Result(MASK_SIZE, detail, digest=digest, notices=notices)
    return _Result(
        num_anomalous_pixels=int(marked.sum()),
        share=float(marked.mean()),
        num_small_regions=reduce_mask(marked, MODEL_SIZE).num_small_regions,
        rules=read.rules,
        digest=digest,
        notices=notices,
    )


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
