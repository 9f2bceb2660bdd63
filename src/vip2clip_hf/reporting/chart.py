"""Histogram of scores, as positions for an SVG picture."""

import math
from collections.abc import Sequence
from typing import Any


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 240, 44, 14, 22, 34
NUM_BINS = 40
# A single photo among thousands is still seen.
LEAST_HEIGHT = 2.0


def histogram(
    groups: Sequence[tuple[str, str, Sequence[float]]], threshold: float | None, num_bins: int = NUM_BINS
) -> dict[str, Any]:
    """
    Count scores in bins of the same width, and place the bars.

    Args:
        groups (`Sequence[tuple[str, str, Sequence[float]]]`): name, CSS class and scores of each group, in [0, 1].
            Their bars are stacked in this order.
        threshold (`float`, *optional*): the image threshold.
        num_bins (`int`, defaults to 40): number of bins.

    Returns:
        `dict[str, Any]`: `bars` (`x`, `y`, `width`, `height`, `kind`, `title`), `threshold` (x, or `None`), `ticks`
        and `counts` (text and x or y), `table` (range and number of photos per group of each bin that is not empty),
        and the size.
    """
    scores = [score for _, _, values in groups for score in values]
    low, high = _range(scores if threshold is None else [*scores, threshold])
    counts = [[0] * num_bins for _ in groups]
    for number, (_, _, values) in enumerate(groups):
        for score in values:
            counts[number][min(num_bins - 1, int((score - low) / (high - low) * num_bins))] += 1
    top = max(1, *(sum(column) for column in zip(*counts))) if groups else 1
    inner, wide = HEIGHT - TOP - BOTTOM, (WIDTH - LEFT - RIGHT) / num_bins
    bars, table = [], []
    for place in range(num_bins):
        start, end = (low + (high - low) * (place + more) / num_bins for more in (0, 1))
        level = float(HEIGHT - BOTTOM)
        for number, (name, kind, _) in enumerate(groups):
            count = counts[number][place]
            if count:
                height = max(LEAST_HEIGHT, count / top * inner)
                level -= height
                bars.append(
                    {
                        "x": round(LEFT + place * wide + 0.5, 1),
                        "y": round(level, 1),
                        "width": round(wide - 1, 1),
                        "height": round(height, 1),
                        "kind": kind,
                        "title": f"{start:.3f} to {end:.3f}: {count} {name}",
                    }
                )
        column = [counts[number][place] for number in range(len(groups))]
        if any(column):
            table.append((f"{start:.3f} to {end:.3f}", column))

    def x_of(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    step = 0.05 if high - low <= 0.5 else 0.1
    ticks = [number * step for number in range(round(1 / step) + 1) if low - 1e-9 <= number * step <= high + 1e-9]
    levels = sorted({0, top // 2, top})
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "bars": bars,
        "threshold": None if threshold is None else x_of(threshold),
        "ticks": [(f"{value:.2f}", x_of(value)) for value in ticks],
        "counts": [(count, round(HEIGHT - BOTTOM - count / top * inner, 1)) for count in levels],
        "groups": [(name, kind) for name, kind, _ in groups],
        "table": table,
    }


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return limits at multiples of 0.05 around the values, in [0, 1]."""
    if not values:
        return 0.0, 1.0
    low = max(0.0, math.floor(min(values) * 20 - 0.2) / 20)
    high = min(1.0, math.ceil(max(values) * 20 + 0.2) / 20)
    return (low, high) if high - low >= 0.05 else (max(0.0, high - 0.05), high)


__all__ = ["histogram"]
