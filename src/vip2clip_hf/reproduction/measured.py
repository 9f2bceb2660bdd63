"""Measured results of the cells of a table: one triple of metrics per seed, and their mean and spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


LEVELS = ("image", "pixel")


@dataclass(frozen=True)
class CellKey:
    """
    Name of a cell. Tables that contain the same setting and dataset share the cell.

    Args:
        setting (`str`): name of a setting, such as `"full"` or `"ica+fgp"`, or of a detector, such as `"WinCLIP"`.
        dataset (`str`): name of a dataset of the plan.
        level (`"image"` or `"pixel"`): level of the metrics.

    Raises:
        ValueError: if the level is unknown.
    """

    setting: str
    dataset: str
    level: str

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level is {self.level!r}; expected {' or '.join(map(repr, LEVELS))}.")


@dataclass(frozen=True)
class Measured:
    """
    Results of a cell.

    Args:
        triples (`tuple[tuple[float, float, float], ...]`): AUROC, AP (image) or AUPRO (pixel), and F1, one triple per
            seed, in percent. NaN for an undefined metric.
        note (`str`, *optional*): why there is no result or not of all seeds, such as `"data not found: data/MVTec"`.
        seeds (`tuple[int, ...]`): the seed of each triple, to pair the results of two settings. If empty, results are
            paired in their order.
        not_compared (`str`, *optional*): why the results cannot be compared with the published ones, such as
            `"there are 120 images (published: 1725)"`. Tables then show no difference.

    Raises:
        ValueError: if a triple does not have three values from 0 to 100 or NaN, or if the number of seeds is not that
            of the triples, or a seed is repeated.
    """

    triples: tuple[tuple[float, float, float], ...] = ()
    note: str | None = None
    seeds: tuple[int, ...] = ()
    not_compared: str | None = None

    def __post_init__(self) -> None:
        for found in self.triples:
            if len(found) != 3 or not all(math.isnan(value) or 0 <= value <= 100 for value in found):
                raise ValueError(
                    f"A result is {found}; expected three metrics in percent, from 0 to 100 or NaN for undefined."
                )
        if self.seeds and len(self.seeds) != len(self.triples):
            raise ValueError(f"seeds is {self.seeds}; expected one for each of the {len(self.triples)} results.")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; expected each seed once.")

    @property
    def num_seeds(self) -> int:
        """Number of seeds with results."""
        return len(self.triples)

    def spreads(self) -> "tuple[Spread, ...]":
        """
        Summarize each metric over the seeds.

        Returns:
            `tuple[Spread, ...]`: mean and standard deviation of the three metrics. Empty if there is no result.
        """
        return tuple(spread(column) for column in zip(*self.triples))


@dataclass(frozen=True)
class Spread:
    """
    Mean and spread of one metric over seeds.

    Args:
        mean (`float`): mean, in percent. NaN if the metric is undefined for at least one seed.
        deviation (`float`): standard deviation, with n - 1 in the denominator, in percentage points. NaN for fewer
            than two seeds and if the mean is NaN.
        number (`int`): number of seeds.
        undefined (`int`): number of seeds for which the metric is undefined.
    """

    mean: float
    deviation: float
    number: int
    undefined: int


def spread(values: Sequence[float]) -> Spread:
    """
    Summarize values over seeds. No value is left out: the mean of values with NaN is NaN.

    Args:
        values (`Sequence[float]`): one value per seed.

    Returns:
        `Spread`: mean, standard deviation, number of seeds and of undefined values.
    """
    number = len(values)
    undefined = sum(map(math.isnan, values))
    if undefined or not number:
        return Spread(math.nan, math.nan, number, undefined)
    mean = math.fsum(values) / number
    if number == 1:
        return Spread(mean, math.nan, number, 0)
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1)), number, 0)


def paired(
    ours: Measured, base: Measured
) -> tuple[list[tuple[tuple[float, float, float], tuple[float, float, float]]], str | None]:
    """
    Pair the results of two settings by seed.

    Args:
        ours (`Measured`): results of a setting.
        base (`Measured`): results of the setting to compare with, on the same dataset and level.

    Returns:
        `tuple[list, str | None]`: the pairs of triples, in the order of `ours`, and the reason if seeds are left out
        or the results cannot be paired.
    """
    if bool(ours.seeds) != bool(base.seeds) and ours.triples and base.triples:
        return [], "the seeds of one of the two are not recorded"
    if not ours.seeds:
        if len(ours.triples) != len(base.triples):
            return [], f"{len(ours.triples)} and {len(base.triples)} results without recorded seeds"
        return list(zip(ours.triples, base.triples)), None
    others = dict(zip(base.seeds, base.triples))
    pairs = [(found, others[seed]) for seed, found in zip(ours.seeds, ours.triples) if seed in others]
    alone = sorted({*ours.seeds} ^ {*base.seeds})
    reason = f"without results of both: seed {', '.join(map(str, alone))}" if alone else None
    return pairs, reason


__all__ = ["LEVELS", "CellKey", "Measured", "Spread", "paired", "spread"]
