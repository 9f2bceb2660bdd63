"""Notes below the table of a comparison."""

from collections.abc import Sequence
from typing import Any

from ..baselines.methods import untrained_texts
from ..evaluation.tables import TITLES
from .table import QUALITY


def comparison_notes(
    records: Sequence[dict[str, Any]], memory_kind: str, texts_mean_nothing: Sequence[str]
) -> list[str]:
    """
    Explain the table.

    Args:
        records (`Sequence[dict[str, Any]]`): results of `describe_method`.
        memory_kind (`str`): what the memory counts.
        texts_mean_nothing (`Sequence[str]`): names of methods that compare images with an untrained text tower.

    Returns:
        `list[str]`: the notes.
    """
    ran = [one for one in records if one["reason"] is None]
    notes = []
    for metric in QUALITY:
        reasons = {one["name"]: one["undefined"][metric] for one in ran if one[metric] is None}
        each = list(dict.fromkeys(reasons.values()))
        if len(reasons) == len(ran):
            notes.append(f"There is no column {TITLES[metric]}: {'; '.join(each)}.")
        elif reasons:
            notes.append(f"{TITLES[metric]} is undefined for {', '.join(reasons)}: {'; '.join(each)}.")
    towers: dict[tuple[str, ...], float] = {}
    for one in ran:
        if one["tower_ms"] is not None:
            towers.setdefault(tuple(sorted({one["name"], *one["shared_tower"]})), one["tower_ms"])
    for names, milliseconds in towers.items():
        notes.append(
            f"The vision tower of {', '.join(names)} ran once for all of them, in {milliseconds:.1f} ms per photo. "
            "It is part of the time of each."
        )
    sizes: dict[int, list[str]] = {}
    for one in ran:
        sizes.setdefault(one["image_size"], []).append(one["name"])
    if len(sizes) > 1:
        texts = [f"{', '.join(names)} at {size} x {size}" for size, names in sizes.items()]
        notes.append(f"The methods see photos in different sizes: {'; '.join(texts)}.")
    if any(one["references"] for one in ran) and any(not one["references"] for one in ran):
        without = ", ".join(one["name"] for one in ran if not one["references"])
        notes.append(f"Zero-shot, because the method does not use references: {without}.")
    if texts_mean_nothing:
        notes.append(f"{untrained_texts(texts_mean_nothing)} Use a CLIP model (--clip).")
    used = {one["weights"] for one in ran}
    if len(used) > 1:
        notes.append(
            "Not all methods have the same weights of CLIP or the same training data (column weights); differences "
            "are also those of the weights."
        )
    notes.append(f"Memory: {memory_kind}. It includes the models of all methods, which are loaded together.")
    return notes


__all__ = ["comparison_notes"]
