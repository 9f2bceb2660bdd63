"""Numbers of Figures 5 and 6 of the paper: gains over static prompts, and metrics by K."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .measured import LEVELS, CellKey, Measured, Spread, paired, spread


# K of Fig. 6.
TOP_K = (1, 10, 20, 50, 100, 200)
# Metrics of an image-level triple, in this order.
IMAGE_METRICS = ("AUROC", "AP", "F1")
# Position of F1 in a triple, at both levels.
F1 = 2
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class F1Gain:
    """
    Gain of F1 of one setting over another, on one dataset and level.

    Args:
        dataset (`str`): name of the dataset.
        level (`"image"` or `"pixel"`): level of F1.
        differences (`tuple[float, ...]`): difference for each seed, in percentage points. NaN for undefined.
        note (`str`, *optional*): why there is no result, or not of all seeds.
        published (`float`, *optional*): gain in the paper, in percentage points.
    """

    dataset: str
    level: str
    differences: tuple[float, ...] = ()
    note: str | None = None
    published: float | None = None

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation of the differences."""
        return spread(self.differences)

    @property
    def exceeds_spread(self) -> bool:
        """Whether the mean difference is larger than the standard deviation of the differences. False for one seed."""
        found = self.spread
        return abs(found.mean) > found.deviation  # comparisons with NaN are False


@dataclass(frozen=True)
class TopKResult:
    """
    Image-level metrics of one dataset for one K of eq. 8.

    Args:
        dataset (`str`): name of the dataset.
        top_k (`int`): the K.
        measured (`Measured`): AUROC, AP and F1 for each seed, in percent.
    """

    dataset: str
    top_k: int
    measured: Measured

    def spread(self, metric: str) -> Spread:
        """Mean and standard deviation of a metric of `IMAGE_METRICS`."""
        position = IMAGE_METRICS.index(metric)
        return spread([triple[position] for triple in self.measured.triples])


def f1_gains(
    results: Mapping[CellKey, Measured],
    datasets: Sequence[str],
    *,
    setting: str = "full",
    base: str = "utpa",
    published: Mapping[CellKey, Sequence[float]] | None = None,
) -> list[F1Gain]:
    """
    Compute the gains of Fig. 5: F1 of the full model minus F1 with static prompts (ViP²-CLIP_re).

    Results are paired by seed. Seeds with a result of only one setting are left out, and the note says so.

    Args:
        results (`Mapping[CellKey, Measured]`): results of both settings.
        datasets (`Sequence[str]`): names of the datasets, in the order of the figure.
        setting (`str`, defaults to `"full"`): the setting with the gain.
        base (`str`, defaults to `"utpa"`): the setting to compare with.
        published (`Mapping[CellKey, Sequence[float]]`, *optional*): triples of the paper. A gain is published if both
            settings are. It is left out if one of the two results cannot be compared with the paper.

    Returns:
        `list[F1Gain]`: one gain per dataset and level. A gain that was not measured has no differences, and a note.
    """
    gains = []
    for dataset in datasets:
        for level in LEVELS:
            keys = {name: CellKey(name, dataset, level) for name in (setting, base)}
            found = {name: results.get(key, Measured(note=NOT_MEASURED)) for name, key in keys.items()}
            pairs, reason = paired(found[setting], found[base])
            names = {setting: "full model", base: "static prompts"}
            notes = [f"{names[name]}: {one.note}" for name, one in found.items() if one.note]
            if len(notes) == 2 and found[setting].note == found[base].note:
                notes = [found[base].note or ""]
            elif reason and not notes:
                notes = [reason]
            differences = tuple(ours[F1] - other[F1] for ours, other in pairs)
            if any(map(math.isnan, differences)):
                notes.append("F1 is undefined")
            in_paper = [published[key] for key in keys.values() if published and key in published]
            comparable = len(in_paper) == 2 and not any(one.not_compared for one in found.values())
            gain = in_paper[0][F1] - in_paper[1][F1] if comparable else None
            gains.append(F1Gain(dataset, level, differences, "; ".join(notes) or None, gain))
    return gains


def top_k_results(
    results: Mapping[CellKey, Measured], datasets: Sequence[str], chosen: int, top_k: Iterable[int] = TOP_K
) -> list[TopKResult]:
    """
    Collect the image-level results of Fig. 6.

    Args:
        results (`Mapping[CellKey, Measured]`):
            Results of the settings `"top_k=<K>"`. Those of the setting `"full"` belong to the chosen K.
        datasets (`Sequence[str]`): names of the datasets, in the order of the figure.
        chosen (`int`): K of the setting `"full"`.
        top_k (`Iterable[int]`, defaults to `TOP_K`): other K.

    Returns:
        `list[TopKResult]`: one result per dataset and K, with K in ascending order. A result that was not measured has
        no triples, and a note.
    """
    found = []
    for dataset in datasets:
        for number in sorted({*top_k, chosen}):
            key = CellKey("full" if number == chosen else f"top_k={number}", dataset, "image")
            found.append(TopKResult(dataset, number, results.get(key, Measured(note=NOT_MEASURED))))
    return found


def gain_notes(gains: Sequence[F1Gain], titles: Mapping[str, str] | None = None) -> list[str]:
    """
    Explain the gains that are missing or incomplete.

    Args:
        gains (`Sequence[F1Gain]`): the gains.
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `list[str]`: one line per dataset and note, with the levels unless it applies to all of the dataset.
    """
    return _notes([(gain.dataset, f"{gain.level} level", gain.note) for gain in gains], titles, "")


def top_k_notes(results: Sequence[TopKResult], titles: Mapping[str, str] | None = None) -> list[str]:
    """
    Explain the results of Fig. 6 that are missing, incomplete or undefined.

    Args:
        results (`Sequence[TopKResult]`): the results.
        titles (`Mapping[str, str]`, *optional*): titles of the datasets by name.

    Returns:
        `list[str]`: one line per dataset and note, with the K unless it applies to all of the dataset.
    """
    found: list[tuple[str, str, str | None]] = []
    for one in results:
        undefined = [metric for metric in IMAGE_METRICS if one.spread(metric).undefined]
        reasons = [one.measured.note, f"undefined: {', '.join(undefined)}" if undefined else None]
        found.append((one.dataset, str(one.top_k), "; ".join(filter(None, reasons)) or None))
    return _notes(found, titles, "K = ")


def seeds_text(numbers: Iterable[int]) -> str:
    """
    Describe numbers of seeds.

    Args:
        numbers (`Iterable[int]`): number of seeds of each result. Results without seeds do not count.

    Returns:
        `str`: such as `"n = 3 seeds"`, `"n = 1 seed"` or `"n = 1 to 3 seeds"`.
    """
    found = sorted({number for number in numbers if number})
    if not found:
        return "no seeds"
    if len(found) > 1:
        return f"n = {found[0]} to {found[-1]} seeds"
    return f"n = {found[0]} seed{'s' if found[0] > 1 else ''}"


def _notes(found: Sequence[tuple[str, str, str | None]], titles: Mapping[str, str] | None, prefix: str) -> list[str]:
    """Join (dataset, part, note): parts with the same note share a line."""
    lines = []
    for dataset in dict.fromkeys(dataset for dataset, _, _ in found):
        parts = [(part, note) for name, part, note in found if name == dataset]
        title = (titles or {}).get(dataset, dataset)
        for note in dict.fromkeys(note for _, note in parts if note):
            same = [part for part, other in parts if other == note]
            where = "" if len(same) == len(parts) else f" ({prefix}{', '.join(same)})"
            lines.append(f"{title}{where}: {note}")
    return lines


__all__ = [
    "IMAGE_METRICS",
    "TOP_K",
    "F1Gain",
    "TopKResult",
    "f1_gains",
    "gain_notes",
    "seeds_text",
    "top_k_notes",
    "top_k_results",
]
