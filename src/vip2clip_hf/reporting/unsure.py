"""Which decisions are unsure: those that a slightly different threshold would change."""

from dataclasses import dataclass
from typing import Any

from ..models.vip2clip.arguments_vip2clip import LABELS
from .predictions import Prediction, Predictions


# Distance from the threshold without a calibration from normal photos.
MARGIN = 0.05
GOOD, DEFECT, UNSURE = "good", "defect", "unsure"


@dataclass(frozen=True)
class UnsureRule:
    """
    When a decision is unsure.

    With a calibration from photos of good parts, a decision is unsure if half or twice the false-alarm rate would
    change it: a normal photo with a p-value of at most twice the rate, or an anomalous photo with a p-value above half
    of the rate. An anomalous photo with a score above that of every photo of the calibration is always sure.

    Otherwise, a decision is unsure if the score is within a margin of the threshold.

    Args:
        rate (`float`, *optional*): false-alarm rate of the calibration.
        num_images (`int`, *optional*): number of photos of the calibration.
        threshold (`float`, *optional*): image threshold. `None` if it is not known.
        margin (`float`, defaults to 0.05): distance from the threshold.
    """

    rate: float | None = None
    num_images: int | None = None
    threshold: float | None = None
    margin: float = MARGIN

    @classmethod
    def of(cls, found: Predictions, margin: float | None = None) -> "UnsureRule":
        """
        Choose the rule for results.

        Args:
            found ([`Predictions`]): the results.
            margin (`float`, *optional*): distance from the threshold to use instead of the calibration.

        Returns:
            [`UnsureRule`]: the rule.

        Raises:
            ValueError: if the margin is negative or above 1, or is needed and the threshold is not known.
        """
        if margin is not None and not 0 <= margin <= 1:
            raise ValueError(f"The margin is {margin}; expected a number from 0 to 1.")
        calibration: dict[str, Any] = found.settings.get("calibrated_with") or {}
        rate: Any = calibration.get("false_alarm_rate")
        count: Any = calibration.get("num_images")
        usable = rate and count and all(row.p_value is not None for row in found.rows if row.score is not None)
        # With another threshold than that of the calibration, its rate has no meaning.
        if usable and margin is None and _fits(found, rate):
            return cls(rate=rate, num_images=count)
        if found.threshold is None:
            raise ValueError(
                f"The threshold of {found.source!r} is not known, so no decision can be called unsure; expected "
                "results with their settings, as vip2clip predict writes them."
            )
        return cls(threshold=found.threshold, margin=MARGIN if margin is None else margin)

    def is_unsure(self, row: Prediction, is_anomalous: bool) -> bool:
        """
        Apply the rule.

        Args:
            row ([`Prediction`]): result of a photo that could be read.
            is_anomalous (`bool`): whether it is decided to be anomalous.

        Returns:
            `bool`: whether the decision is unsure.
        """
        if self.rate is not None and self.num_images is not None and row.p_value is not None:
            if is_anomalous:
                least = 1 / (self.num_images + 1)  # p-value of a score above those of all photos of the calibration
                return row.p_value > max(self.rate / 2, least) * (1 + 1e-6)
            return row.p_value <= 2 * self.rate
        return abs((row.score or 0.0) - (self.threshold or 0.0)) <= self.margin

    def __str__(self) -> str:
        if self.rate is not None:
            return (
                f"Unsure: half or twice the false-alarm rate of {100 * self.rate:g} % would change the decision, or "
                "the photo could not be read."
            )
        return (
            f"Unsure: the score is within {self.margin:g} of the threshold {self.threshold:.3f}, or the photo could "
            "not be read."
        )


def _fits(found: Predictions, rate: float) -> bool:
    """Whether the labels are those of the threshold of the calibration: anomalous exactly if p is at most the rate."""
    anomalous = found.labels[1]
    return all(
        (row.label == anomalous) == ((row.p_value or 0) <= rate * (1 + 1e-6))
        for row in found.rows
        if row.score is not None
    )


def folders_of(found: Predictions, rule: UnsureRule | None) -> dict[int, str]:
    """
    Choose the folder of each photo.

    Args:
        found ([`Predictions`]): the results.
        rule ([`UnsureRule`], *optional*): with a rule, the folders are `good`, `defect` and `unsure`, which also has
            the photos that could not be read. Without, they are `normal`, `anomalous` and `unreadable`.

    Returns:
        `dict[int, str]`: folder by position in the table.
    """
    folders = {}
    for position, row in enumerate(found.rows):
        is_anomalous = row.label == found.labels[1]
        if rule is None:
            folders[position] = "unreadable" if row.score is None else LABELS[is_anomalous]
        elif row.score is None or rule.is_unsure(row, is_anomalous):
            folders[position] = UNSURE
        else:
            folders[position] = DEFECT if is_anomalous else GOOD
    return folders


__all__ = ["DEFECT", "GOOD", "MARGIN", "UNSURE", "UnsureRule", "folders_of"]
