"""Lines that `vip2clip predict` prints without --output."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .streams import say


# Photos in each list of the summary.
MOST = 10


def print_entry(entry: dict[str, Any]) -> None:
    """
    Print the result of a photo.

    Args:
        entry (`dict[str, Any]`): record of the JSON list.
    """
    from ..utils.text import shown

    text = shown(entry["error"]) if "error" in entry else f"{entry['score']:.3f} {entry['label']}"
    if entry.get("p_value") is not None:
        text += f", p-value {entry['p_value']:.3g}"
    lines = [f"{shown(entry['image'])}: {text}"]
    for region in entry.get("regions", ()):
        left, top, right, bottom = region["box"]
        lines.append(
            f"  {left}, {top} to {right}, {bottom}: {region['area']} pixels, "
            f"mean {region['mean_score']:.3f}, peak {region['peak_score']:.3f}"
        )
    say("\n".join(lines))


def print_summary(entries: Sequence[dict[str, Any]], threshold: float | None) -> None:
    """
    Print how many photos have each label, those with the highest scores, and those that could not be read.

    Args:
        entries (`Sequence[dict[str, Any]]`): records of the JSON list.
        threshold (`float`, *optional*): the image threshold. `None` if it is not known.
    """
    scored = sorted((one for one in entries if "error" not in one), key=lambda one: -one["score"])
    failed = [one for one in entries if "error" in one]
    counts = Counter(one["label"] for one in reversed(scored))  # the normal ones first
    parts = [f"{count} {label}" for label, count in counts.items()]
    parts += [f"{len(failed)} unreadable"] if failed else []
    text = f"{len(entries)} photos: {', '.join(parts)}."
    if scored:
        text += f" Scores from {scored[-1]['score']:.3f} to {scored[0]['score']:.3f}"
        text += "." if threshold is None else f", threshold {threshold:.3f}."
    say(text)
    if scored:
        say(f"The {min(MOST, len(scored))} highest scores:")
        for entry in scored[:MOST]:
            print_entry(entry)
    if failed:
        say("Could not be read:")
        for entry in failed[:MOST]:
            print_entry(entry)
        if len(failed) > MOST:
            say(f"and {len(failed) - MOST} more")


__all__ = ["MOST", "print_entry", "print_summary"]
