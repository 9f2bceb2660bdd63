"""Recognise the layout of a folder."""

import re
from collections.abc import Sequence

from .benchmarks.benchmark import Benchmark
from .benchmarks.registry import BENCHMARKS
from .layouts.base import Layout, Reading
from .layouts.registry import BENCHMARK_LAYOUTS
from .listing import Listing
from .report import examples


def choose_layout(
    listing: Listing, layouts: Sequence[Layout], benchmark: Benchmark | None
) -> tuple[Listing, list[Layout]] | None:
    """The data root, which is the folder or one in it, and the layouts it is in, the first before the others."""
    root = listing.root
    found = [layout for layout in layouts if layout.matches(listing, benchmark)]
    # A stray picture beside the folder that holds the data does not make a data set.
    if found and found[0].name != "flat":
        return listing, found
    inner = []
    for folder in listing.subfolders(""):
        child = Listing(root / folder)
        matching = [layout for layout in layouts if layout.matches(child, benchmark)]
        if matching and not (found and matching[0].name == "flat"):
            inner.append((child, matching))
    if len(inner) > 1:
        inner = _prefer(inner, benchmark)
    if len(inner) > 1:
        names = ", ".join(child.root.name for child, _ in inner)
        if all(matching[0].name == "flat" for _, matching in inner):
            raise ValueError(
                f"{str(root)!r} holds several folders of images ({names}), of which it cannot be told what they are; "
                f"expected {_expected(layouts)}."
            )
        raise ValueError(f"{str(root)!r} holds several data sets: {names}. Name the folder of one.")
    if inner:
        return inner[0]
    return (listing, found) if found else None


def _prefer(inner: list[tuple[Listing, list[Layout]]], benchmark: Benchmark | None) -> list:
    """Of several folders inside those that bear the name of the benchmark; of the same images as PNG and TIF, PNG."""
    if benchmark is None:
        return inner

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    names = {plain(name) for name in (benchmark.name, benchmark.title, *benchmark.folders)}
    named = [one for one in inner if plain(one[0].root.name) in names]
    formats = [one for one in inner if one[0].root.name.lower() == "png"]
    copies = {one[0].root.name.lower() for one in inner} <= {"png", "tif", "tiff"}
    return formats if copies and formats else named or inner


def read_layout(
    listing: Listing,
    chosen: tuple[Listing, list[Layout]] | None,
    layouts: Sequence[Layout],
    benchmark: Benchmark | None,
) -> tuple[Reading, Layout]:
    what = "a data set" if benchmark is None else benchmark.title
    if chosen is None:
        hint = _looks_like(listing) if benchmark is None else ""
        if benchmark is not None and len(benchmark.categories) > 1:
            hint = f" Its categories are {', '.join(benchmark.categories)}."
        raise ValueError(
            f"{str(listing.root)!r} is not laid out as {what}; expected {_expected(layouts)}, directly in it or in "
            f"one folder inside. It holds: {listing.outline()}.{hint}"
        )
    listing, matching = chosen
    failed = None
    for layout in matching:
        reading = Reading(listing, benchmark)
        layout.read(reading)
        if failed is not None:
            reading.notes.append(failed)
        if reading.rows:
            return reading, layout
        failed = f"{layout.title} was not used: none of the images it names was found."
        listing = Listing(listing.root)
    raise ValueError(
        f"{str(listing.root)!r} is laid out as {matching[-1].title} but holds no images; expected "
        f"{matching[-1].expected}. It holds: {listing.outline()}.{left_out(reading)}"
    )


def left_out(reading: Reading) -> str:
    found = [f"{len(paths)} {kind}: {examples(paths)}" for kind, paths in reading.warnings.items()]
    return f" Found were {'; '.join(found)}." if found else ""


def _expected(layouts: Sequence[Layout]) -> str:
    return "; or ".join(f"{layout.title} ({layout.expected})" for layout in layouts)


def _looks_like(listing: Listing) -> str:
    """A hint where a folder is a benchmark in a layout of its own."""
    for layout in BENCHMARK_LAYOUTS:
        chosen = choose_layout(listing, [layout], None)
        if chosen is not None:
            names = [benchmark.name for benchmark in BENCHMARKS.values() if layout.name in benchmark.layouts]
            return f" It looks like {layout.title}: use load_benchmark({names[0]!r}, ...)."
    return ""


__all__ = ["choose_layout", "left_out", "read_layout"]
