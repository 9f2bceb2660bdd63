"""Detect the layout of a folder and read it."""

import re
from collections.abc import Sequence

from ..models.vip2clip.image_listing_vip2clip import mask_folder_part
from .benchmarks.benchmark import Benchmark
from .benchmarks.registry import BENCHMARKS
from .layouts.base import Layout, Reading
from .layouts.class_folders import IN_PYTHON, SETTLE
from .layouts.registry import BENCHMARK_LAYOUTS
from .layouts.words import ClassNames, is_ambiguous_word, is_no_class
from .listing import Listing
from .report import summarize


# How many levels below the folder passed by the user a dataset is searched.
DEEPEST = 4
ANY_NAMES = ClassNames()
SHORT = (
    "normal/*.png and anomalous/*.png, <category>/test/good/*.png, images/*.png and masks/*.png, a table, meta.json "
    "or *.png, in this folder or below"
)


def choose_layout(
    listing: Listing,
    layouts: Sequence[Layout],
    benchmark: Benchmark | None,
    names: ClassNames = ANY_NAMES,
    deepest: int = DEEPEST,
) -> tuple[Listing, list[Layout]] | None:
    """
    Find the folder with the data and the layouts it matches.

    Args:
        listing (`Listing`): folder passed by the user. The data can also be in one of its subfolders.
        layouts (`Sequence[Layout]`): layouts to try, in this order.
        benchmark (`Benchmark`, *optional*): benchmark to read the folder as.
        names (`ClassNames`, *optional*): names of normal and anomalous folders.
        deepest (`int`, defaults to 4): number of levels to search. Below the first, not for benchmarks, nor if the
            folder looks like one.

    Returns:
        `tuple[Listing, list[Layout]]`: the data root and its matching layouts in order, or None if no layout matches.

    Raises:
        ValueError: if several subfolders match.
    """

    def matching(candidate: Listing) -> list[Layout]:
        return [layout for layout in layouts if layout.matches(Reading(candidate, benchmark, names))]

    found = matching(listing)
    # Images next to the dataset folder match the layout "flat". A better match in a subfolder wins.
    if found and found[0].name != "flat":
        return listing, found
    level = [listing]
    for depth in range(1 if benchmark is not None or found else deepest):
        if depth == 1 and _suggest_benchmark(listing):
            return None
        level = [Listing(above.root / folder) for above in level for folder in above.subfolders("")]
        candidates = [(child, match) for child in level if (match := matching(child))]
        if found:
            candidates = [(child, match) for child, match in candidates if match[0].name != "flat"]
        elif benchmark is None:
            named = [(child, match) for child, match in candidates if not _is_beside_data(child.root.name)]
            candidates = named or candidates
        if len(candidates) > 1:
            candidates = _prefer(candidates, benchmark)
        if len(candidates) > 1 and benchmark is None and deepest > 1 and _suggest_benchmark(listing):
            return None
        if len(candidates) > 1:
            raise ValueError(_describe_several(listing, candidates, names))
        if candidates:
            return candidates[0]
    return (listing, found) if found else None


def _is_beside_data(name: str) -> bool:
    """Whether folders with this name hold masks, results or unsorted images, not a dataset."""
    return is_no_class(name) or mask_folder_part(name) is not None


def _describe_several(
    listing: Listing, candidates: list[tuple[Listing, list[Layout]]], class_names: ClassNames
) -> str:
    inner = [child.root.relative_to(listing.root).as_posix() for child, _ in candidates]
    names = ", ".join(inner[:8]) + (", ..." if len(inner) > 8 else "")
    if any(matching[0].name != "flat" for _, matching in candidates):
        return f"Folder {str(listing.root)!r} contains several datasets: {names}; expected the folder of one."
    if class_names.given:
        chosen = ", ".join(map(repr, (*(class_names.normal or ()), *(class_names.anomalous or ()))))
        return (
            f"normal_labels and anomalous_labels have {chosen}, but folder {str(listing.root)!r} has other image "
            f"folders ({names}); expected names of these."
        )
    ambiguous = [name for name in inner if is_ambiguous_word(name.rpartition("/")[2])]
    what = " (positive can mean a part that passes, or a defect that is found)" if ambiguous else ""
    return (
        f"Folder {str(listing.root)!r} contains several image folders ({names}) with names of unknown meaning{what}; "
        f"expected names such as normal/*.png and anomalous/*.png. {SETTLE} {IN_PYTHON}."
    )


def _prefer(
    candidates: list[tuple[Listing, list[Layout]]], benchmark: Benchmark | None
) -> list[tuple[Listing, list[Layout]]]:
    """Keep the folders named after the benchmark. If the folders are PNG and TIFF copies, keep PNG."""
    if benchmark is None:
        return candidates

    def normalize(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    names = {normalize(name) for name in (benchmark.name, benchmark.title, *benchmark.folders)}
    named = [candidate for candidate in candidates if normalize(candidate[0].root.name) in names]
    png = [candidate for candidate in candidates if candidate[0].root.name.lower() == "png"]
    are_copies = {candidate[0].root.name.lower() for candidate in candidates} <= {"png", "tif", "tiff"}
    return png if are_copies and png else named or candidates


def read_layout(
    listing: Listing,
    chosen: tuple[Listing, list[Layout]] | None,
    layouts: Sequence[Layout],
    benchmark: Benchmark | None,
    names: ClassNames = ANY_NAMES,
) -> tuple[Reading, Layout]:
    """
    Read a folder in the first matching layout that gives images.

    Args:
        listing (`Listing`): folder passed by the user, for error messages.
        chosen (`tuple[Listing, list[Layout]]`, *optional*): result of [`choose_layout`].
        layouts (`Sequence[Layout]`): layouts that were tried, for error messages.
        benchmark (`Benchmark`, *optional*): benchmark to read the folder as.
        names (`ClassNames`, *optional*): names of normal and anomalous folders.

    Returns:
        `tuple[Reading, Layout]`: the rows with warnings and notes, and the layout used.

    Raises:
        ValueError: if no layout matches or there are no images.
    """
    if chosen is None:
        if benchmark is None:
            what, hint = "a known layout", _suggest_benchmark(listing)
            if not hint and (folders := listing.image_folders()):
                hint = f" Folders with images: {folders}. {SETTLE} {IN_PYTHON}."
        else:
            what, several = f"the layout of {benchmark.title}", len(benchmark.categories) > 1
            hint = f" Categories of {benchmark.title}: {', '.join(benchmark.categories)}." if several else ""
        raise ValueError(
            f"Folder {str(listing.root)!r} does not have {what}; expected {_expected(layouts, benchmark)}. "
            f"Found: {listing.outline(6)}.{hint}"
        )
    listing, matching = chosen
    unused = None
    for layout in matching:
        reading = Reading(listing, benchmark, names)
        layout.read(reading)
        if unused is not None:
            reading.notes.append(unused)
        if reading.rows:
            return reading, layout
        unused = f"The layout {layout.title!r} was not used because none of its images exists."
        listing = Listing(listing.root)
    raise ValueError(
        f"Folder {str(listing.root)!r} has the layout {matching[-1].title!r} but no images; expected "
        f"{matching[-1].expected}. Found: {listing.outline()}.{list_warnings(reading)}"
    )


def list_warnings(reading: Reading) -> str:
    """Sentence with the warnings of a reading, for error messages. Empty if there are none."""
    found = [summarize(kind, paths) for kind, paths in reading.warnings.items()]
    return f" Warnings: {'; '.join(found)}." if found else ""


def _expected(layouts: Sequence[Layout], benchmark: Benchmark | None) -> str:
    if benchmark is None and len(layouts) > 1:
        return SHORT
    return "; or ".join(f"{layout.title} ({layout.expected})" for layout in layouts)


def _suggest_benchmark(listing: Listing) -> str:
    """Hint to use [`load_benchmark`] for the official release of a benchmark."""
    for layout in BENCHMARK_LAYOUTS:
        if choose_layout(listing, [layout], None, deepest=1) is not None:
            names = [benchmark.name for benchmark in BENCHMARKS.values() if layout.name in benchmark.layouts]
            return f" It looks like the {layout.title}; use load_benchmark({names[0]!r}, ...)."
    return ""


__all__ = ["choose_layout", "list_warnings", "read_layout"]
