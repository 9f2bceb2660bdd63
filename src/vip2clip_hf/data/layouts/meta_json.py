"""Layout with a `meta.json` file, as written by research code."""

import json
import re
from pathlib import Path
from typing import Any

from ..benchmarks.benchmark import Benchmark
from ..listing import LAYOUT_FILE, Listing, stem
from .base import SPLITS, Layout, Reading
from .columns import to_label
from .paths import PathResolver, find_listed_mask
from .words import split_name


def find_meta(listing: Listing, benchmark: Benchmark | None) -> tuple[str, dict[str, dict[str, list]]] | None:
    """
    Find the meta file directly in the folder: `meta.json`, or `meta_<name>.json` as written by VCP-CLIP.

    Args:
        listing (`Listing`): files of the dataset.
        benchmark (`Benchmark`, *optional*): benchmark of `meta_<name>.json`. Without it, any name is accepted if there
            is only one such file.

    Returns:
        `tuple[str, dict[str, dict[str, list]]]`: file name and content, see [`read_meta_file`]. None if there is no
        meta file.

    Raises:
        ValueError: if there are several candidates.
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
        raise ValueError(
            f"Folder {str(listing.root)!r} contains several meta files ({', '.join(found)}); expected the path of one."
        )
    return next(iter(found.items()), None)


def read_meta_file(path: Path) -> dict[str, dict[str, list]] | None:
    """Entries of a meta file by split (lower case) and category. None if the file has another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    by_split = {split_name(str(name)) or str(name).lower(): part for name, part in content.items()}
    if not any(split in by_split for split in SPLITS):
        return None
    parts = {split: by_split[split] for split in SPLITS if by_split.get(split)}
    if not all(isinstance(p, dict) and all(isinstance(e, list) for e in p.values()) for p in parts.values()):
        return None
    return parts


def meta_matches(reading: Reading) -> bool:
    found = find_meta(reading.listing, reading.benchmark)
    if found is None:
        return False
    return any(reading.category(name) is not None for part in found[1].values() for name in part)


def read_meta(reading: Reading, path: str | None = None) -> None:
    """Read the images listed in a meta file, by default the one found by [`find_meta`]."""
    listing = reading.listing
    content = None
    if path is not None:
        content = read_meta_file(listing.root / path)
    elif (found := find_meta(listing, reading.benchmark)) is not None:
        path, content = found
    if path is None or content is None:
        return
    resolve = PathResolver(listing)
    taken: dict[str, str] = {}
    for split, categories in content.items():
        for folder_name, entries in categories.items():
            category = reading.category(str(folder_name))
            if category is None:
                reading.warn("meta categories unknown to the benchmark, left out", folder_name)
                continue
            before = len(reading.rows)
            for entry in entries:
                _read_meta_entry(reading, resolve, entry, category, split, taken)
            if len(reading.rows) == before:
                reading.empty.append(category)
    resolve.add_note(reading, path)
    mismatched = [row.image for row in reading.rows if row.mask is not None and not _names_match(row.image, row.mask)]
    if mismatched:
        reading.warn(f"images paired with a differently named mask in {path}, pairs may be wrong", *mismatched)
    listing.mark([path], LAYOUT_FILE)


def _names_match(image: str, mask: str) -> bool:
    """Whether the name of a mask contains the name of the image."""
    whole = rf"(?<![^\W_]){re.escape(stem(image))}(?![^\W_])"  # 1 matches 1_mask but not 10_mask
    return re.search(whole, stem(mask), re.IGNORECASE) is not None


def _read_meta_entry(
    reading: Reading, resolve: PathResolver, entry: Any, category: str, split: str, taken: dict[str, str]
) -> None:
    if not isinstance(entry, dict) or to_label(entry.get("anomaly"), "anomaly") is None:
        reading.warn("meta entries without anomaly 0 or 1, left out", str(entry)[:120])
        return
    path = entry.get("img_path")
    if not path:  # a placeholder for an empty folder
        return
    image = resolve(path)
    if image is None:
        reading.warn(resolve.problem(path), str(path))
        return
    if taken.setdefault(image, str(path)) != str(path):
        reading.warn("meta entries for an image that another entry already has, left out", str(path))
        return
    label = to_label(entry["anomaly"], "anomaly")
    masks = find_listed_mask(reading, resolve, entry.get("mask_path")) if label else []
    kind = str(entry.get("specie_name") or "")  # some files have the name of the image here
    defect = kind if label and kind != image.rsplit("/", 1)[-1] else ""
    reading.add(image, label, category, masks, defect=defect, split=split)


META = Layout(
    name="meta",
    title="meta.json from research code",
    matches=meta_matches,
    read=read_meta,
    expected="meta.json",
)


__all__ = ["META", "read_meta", "read_meta_file"]
