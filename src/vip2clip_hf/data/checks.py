"""Checks that have to open every image and mask; `vip2clip data --check` runs them."""

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


BAD_IMAGE = "images that cannot be read"
BAD_MASK = "masks that cannot be read"
MASK_SIZE = "masks of another size than their image"
CONTRADICTION = "normal images whose mask marks anomalous pixels"
EMPTY_MASK = "anomalous images whose mask is empty at this mask threshold; they stay anomalous"
LOSSY_MASK = "masks with noise near 0 that counts as anomalous at this mask threshold; 127 suits masks stored lossily"
DUPLICATE = "images that are byte for byte the same as an earlier one; all are kept"


@dataclass
class DataCheck:
    """
    What opening every image and mask brought to light; `str(check)` is for people.

    Args:
        checked (`int`): images opened.
        problems (`dict[str, list[str]]`): what makes an image or its mask unusable, with the images.
        notes (`dict[str, list[str]]`): what is worth knowing and harms nothing.
        usable (`DataIndex`): the index without unusable images, and with null for unusable masks.
    """

    checked: int
    usable: DataIndex
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {"checked": self.checked, "problems": self.problems, "notes": self.notes}

    def __str__(self) -> str:
        lines = [f"Checked {self.checked} images and their masks: {'problems' if self.problems else 'no problems'}."]
        for found, most in ((self.problems, None), (self.notes, 3)):
            for kind, names in found.items():
                lines.append(f"  {len(names)} x {kind}:")
                lines += [f"    {name}" for name in names[:most]]
                lines += ["    ..."] if most is not None and len(names) > most else []
        return "\n".join(lines)


def check_data(
    index: DataIndex, mask_threshold: int | float | None = None, num_workers: int = 4, progress: bool = False
) -> DataCheck:
    """
    Open every image and mask of an index and compare them.

    Args:
        index (`DataIndex`):
            From [`index_folder`] or [`index_benchmark`].
        mask_threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous; the benchmark's, otherwise 0.
        num_workers (`int`, defaults to 4):
            Threads.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `DataCheck`: `check.usable.to_dataset()` is the data set without what cannot be used.
    """
    if mask_threshold is None:
        mask_threshold = index.benchmark.mask_threshold if index.benchmark is not None else 0
    cells = _cells(index)
    check = DataCheck(len(index.rows), index)
    bad_images, bad_masks, digests = set(), set(), {}
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda number: _check_one(*cells(number), mask_threshold), range(len(index.rows)))
        for row, result in zip(index.rows, tqdm(results, total=len(index.rows), disable=not progress, unit="image")):
            for kind, detail in result["problems"]:
                check.problems.setdefault(kind, []).append(f"{row.image}{detail}")
                (bad_images if kind == BAD_IMAGE else bad_masks).add(row.image)
            found = []
            if result["marked"] is not None:
                if row.label == 0 and result["marked"]:
                    check.problems.setdefault(CONTRADICTION, []).append(f"{row.image} ({result['marked']} pixels)")
                    bad_masks.add(row.image)
                if row.label == 1 and not result["marked"]:
                    found.append(EMPTY_MASK)
                if result["between"]:
                    found.append(LOSSY_MASK)
            if result["digest"] in digests:
                check.notes.setdefault(DUPLICATE, []).append(f"{row.image} (as {digests[result['digest']]})")
            elif result["digest"] is not None:
                digests[result["digest"]] = row.image
            for kind in found:
                check.notes.setdefault(kind, []).append(row.image)
    if bad_images or bad_masks:
        check.usable = _without(index, bad_images, bad_masks)
    return check


def _cells(index: DataIndex) -> Callable[[int], tuple[Any, Any]]:
    """Image and mask of a row, not decoded."""
    if index.source is None:
        listing = index.reading.listing
        return lambda number: tuple(
            None if path is None else listing.absolute(path)
            for path in (index.rows[number].image, index.rows[number].mask)
        )
    stored = index.source.select_columns(["image", "mask"]).with_format("arrow")

    def read(number: int) -> tuple[Any, Any]:
        row = stored[number]
        return row["image"][0].as_py(), row["mask"][0].as_py()

    return read


def _check_one(image: Any, mask: Any, mask_threshold: float) -> dict[str, Any]:
    result = {"problems": [], "marked": None, "between": False, "digest": None}
    try:
        if not isinstance(image, dict) or image.get("bytes") is None:
            path = image["path"] if isinstance(image, dict) else image
            image = {"bytes": Path(path).read_bytes(), "path": path}
        size = load_image(image).size
        result["digest"] = hashlib.sha256(image["bytes"]).digest()
    except (OSError, ValueError) as error:
        result["problems"].append((BAD_IMAGE, f" ({error})"))
        return result
    if mask is None:
        return result
    try:
        values = load_mask(mask)
    except (OSError, ValueError) as error:
        result["problems"].append((BAD_MASK, f" ({error})"))
        return result
    if values.shape != size[::-1]:
        result["problems"].append(
            (MASK_SIZE, f" (mask {values.shape[1]} x {values.shape[0]}, image {size[0]} x {size[1]} pixels)")
        )
        return result
    result["marked"] = int((values > mask_threshold).sum())
    # Values near 0 beside some near 255: noise, not the ids of classes and not the two levels of a clean mask.
    result["between"] = bool(values.max() > 200 and ((values > mask_threshold) & (values < 55)).any())
    return result


def _without(index: DataIndex, bad_images: set[str], bad_masks: set[str]) -> DataIndex:
    if index.source is not None:  # stored masks cannot be taken off their rows
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
