"""Lines that `vip2clip predict` prints without --output."""

from typing import Any

from .streams import say


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


__all__ = ["print_entry"]
