"""The `meta.json` of the research codes."""

import json
import re
from pathlib import Path
from typing import Any

from ..benchmarks.benchmark import Benchmark
from ..listing import LAYOUT_FILE, Listing, stem
from .base import SPLITS, Layout, Reading
from .columns import to_label
from .paths import PathResolver, find_named_mask


# meta.json


def find_meta(listing: Listing, benchmark: Benchmark | None) -> tuple[str, dict[str, dict[str, list]]] | None:
    """
    Name and content of `meta.json` directly in the folder, or of `meta_<name>.json` as VCP-CLIP writes it: that of
    the benchmark, or the only one there is.

    Raises:
        ValueError: several, of which it cannot be told which one is meant.
    """
    names = ["meta.json"] if benchmark is None else [f"meta_{benchmark.name}.json", "meta.json"]
    for name in names:
        path = listing.find_file("", name)
        if path is not None and (content := read_meta_file(listing.root / path)) is not None:
            return path, content
    if benchmark is not None:
        return None
    others = [name for name in listing.files("") if re.fullmatch(r"meta_.*\.json", name.lower())]
    found = {name: content for name in others if (content := read_meta_file(listing.root / name)) is not None}
    if len(found) > 1:
        raise ValueError(f"{str(listing.root)!r} holds several meta files: {', '.join(found)}. Name one of them.")
    return next(iter(found.items()), None)


def read_meta_file(path: Path) -> dict[str, dict[str, list]] | None:
    """Entries by split (lower case) and category; None when the file is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    by_split = {str(name).lower(): part for name, part in content.items()}
    if not any(split in by_split for split in SPLITS):
        return None
    parts = {split: by_split[split] for split in SPLITS if by_split.get(split)}
    if not all(isinstance(p, dict) and all(isinstance(e, list) for e in p.values()) for p in parts.values()):
        return None
    return parts


def meta_matches(listing: Listing, benchmark: Benchmark | None) -> bool:
    found = find_meta(listing, benchmark)
    if found is None:
        return False
    reading = Reading(listing, benchmark)
    return any(reading.category(name) is not None for part in found[1].values() for name in part)


def read_meta(reading: Reading, path: str | None = None):
    listing = reading.listing
    if path is None:
        path, content = find_meta(listing, reading.benchmark)
    else:
        content = read_meta_file(listing.root / path)
    resolve = PathResolver(listing)
    taken: dict[str, str] = {}
    for split, categories in content.items():
        for folder_name, entries in categories.items():
            category = reading.category(str(folder_name))
            if category is None:
                reading.warn("categories of the meta file that the benchmark does not have, left out", folder_name)
                continue
            before = len(reading.rows)
            for entry in entries:
                _read_meta_entry(reading, resolve, entry, category, split, taken)
            if len(reading.rows) == before:
                reading.empty.append(category)
    if resolve.rerooted:
        reading.notes.append(
            f"{resolve.rerooted} paths of {path} are those of another machine or folder; each was found below the "
            "root by its longest part at the end."
        )
    strangers = [row.image for row in reading.rows if row.mask is not None and not _belong(row.image, row.mask)]
    if strangers:
        reading.warn(f"images that {path} gives a mask of another name; it may pair by sort order", *strangers)
    listing.mark([path], LAYOUT_FILE)


def _belong(image: str, mask: str) -> bool:
    """Whether the names say that a mask is that of an image."""
    whole = rf"(?<![^\W_]){re.escape(stem(image))}(?![^\W_])"  # 1 is in 1_mask, and not in 10_mask
    return re.search(whole, stem(mask), re.IGNORECASE) is not None


def _read_meta_entry(
    reading: Reading, resolve: PathResolver, entry: Any, category: str, split: str, taken: dict[str, str]
):
    if not isinstance(entry, dict) or to_label(entry.get("anomaly")) is None:
        reading.warn("entries of the meta file without img_path and anomaly (0 or 1), left out", str(entry)[:120])
        return
    named = entry.get("img_path")
    if not named:  # a placeholder for an empty folder
        return
    image = resolve(named)
    if image is None:
        reading.warn(*resolve.refused(named))
        return
    if taken.setdefault(image, str(named)) != str(named):
        reading.warn("entries of the meta file that point to an image another entry has, left out", str(named))
        return
    label = to_label(entry["anomaly"])
    masks = find_named_mask(reading, resolve, entry.get("mask_path")) if label else []
    kind = str(entry.get("specie_name") or "")
    defect = kind if label and kind != image.rsplit("/", 1)[-1] else ""
    reading.add(image, label, category, masks, defect=defect, split=split)


META = Layout(
    name="meta",
    title="meta.json of the research codes",
    matches=meta_matches,
    read=read_meta,
    expected="meta.json",
)


__all__ = ["META", "read_meta", "read_meta_file"]
