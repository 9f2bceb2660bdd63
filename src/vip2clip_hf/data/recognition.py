"""Detect the layout of a folder and read it."""

import re
from collections.abc import Sequence

from .benchmarks.benchmark import Benchmark
from .benchmarks.registry import BENCHMARKS
from .layouts.base import Layout, Reading
from .layouts.registry import BENCHMARK_LAYOUTS
from .listing import Listing
from .report import summarize


def choose_layout(
    listing: Listing, layouts: Sequence[Layout], benchmark: Benchmark | None
) -> tuple[Listing, list[Layout]] | None:
    """
    Find the folder with the data and the layouts it matches.

    Args:
        listing (`Listing`): folder passed by the user. The data can also be in one of its subfolders.
        layouts (`Sequence[Layout]`): layouts to try, in this order.
        benchmark (`Benchmark`, *optional*): benchmark to read the folder as.

    Returns:
        `tuple[Listing, list[Layout]]`: the data root and its matching layouts in order, or None if no layout matches.

    Raises:
        ValueError: if several subfolders match.
    """
    root = listing.root
    found = [layout for layout in layouts if layout.matches(listing, benchmark)]
    # Images next to the dataset folder match the layout "flat". A better match in a subfolder wins.
    if found and found[0].name != "flat":
        return listing, found
    candidates = []
    for folder in listing.subfolders(""):
        child = Listing(root / folder)
        matching = [layout for layout in layouts if layout.matches(child, benchmark)]
        if matching and not (found and matching[0].name == "flat"):
            candidates.append((child, matching))
    if len(candidates) > 1:
        candidates = _prefer(candidates, benchmark)
    if len(candidates) > 1:
        names = ", ".join(child.root.name for child, _ in candidates)
        if all(matching[0].name == "flat" for _, matching in candidates):
            raise ValueError(
                f"Folder {str(root)!r} contains several image folders ({names}) with names of unknown meaning; "
                f"expected {_expected(layouts)}."
            )
        raise ValueError(f"Folder {str(root)!r} contains several datasets: {names}; expected the folder of one.")
    if candidates:
        return candidates[0]
    return (listing, found) if found else None


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
) -> tuple[Reading, Layout]:
    """
    Read a folder in the first matching layout that gives images.

    Args:
        listing (`Listing`): folder passed by the user, for error messages.
        chosen (`tuple[Listing, list[Layout]]`, *optional*): result of [`choose_layout`].
        layouts (`Sequence[Layout]`): layouts that were tried, for error messages.
        benchmark (`Benchmark`, *optional*): benchmark to read the folder as.

    Returns:
        `tuple[Reading, Layout]`: the rows with warnings and notes, and the layout used.

    Raises:
        ValueError: if no layout matches or there are no images.
    """
    if chosen is None:
        if benchmark is None:
            what, hint = "a known layout", _suggest_benchmark(listing)
        else:
            what, several = f"the layout of {benchmark.title}", len(benchmark.categories) > 1
            hint = f" Categories of {benchmark.title}: {', '.join(benchmark.categories)}." if several else ""
        raise ValueError(
            f"Folder {str(listing.root)!r} does not have {what}; expected {_expected(layouts)}, in this folder or in "
            f"a folder inside it. Found: {listing.outline()}.{hint}"
        )
    listing, matching = chosen
    unused = None
    for layout in matching:
        reading = Reading(listing, benchmark)
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


def _expected(layouts: Sequence[Layout]) -> str:
    return "; or ".join(f"{layout.title} ({layout.expected})" for layout in layouts)


def _suggest_benchmark(listing: Listing) -> str:
    """Hint to use [`load_benchmark`] for the official release of a benchmark."""
    for layout in BENCHMARK_LAYOUTS:
        if choose_layout(listing, [layout], None) is not None:
            names = [benchmark.name for benchmark in BENCHMARKS.values() if layout.name in benchmark.layouts]
            return f" It looks like the {layout.title}; use load_benchmark({names[0]!r}, ...)."
    return ""


__all__ = ["choose_layout", "list_warnings", "read_layout"]
