"""Result of adapting a checkpoint to a product."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calibration.detection import CROSS_VALIDATION, Detection
from ..calibration.synthetic_defects import SyntheticDefect
from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.serialization import without_nan
from .defects import DefectReport


@dataclass
class Adaptation:
    """
    Result of [`adapt`]: references and thresholds of a product, and what is known about them.

    Args:
        folder (`pathlib.Path`, *optional*):
            The checkpoint that was written.
        bank ([`ReferenceBank`]):
            The references.
        decision ([`DecisionConfig`]):
            The thresholds. Not calibrated if there is only one photo.
        scores (`dict[str, float]`):
            Score of each photo that the thresholds were chosen from, compared with references other than itself, in
            [0, 1]. Of a single photo, empty.
        peaks (`dict[str, float]`):
            Largest value of the anomaly map of each of these photos, in [0, 1].
        num_split (`int`):
            Number of photos that chose the thresholds and are not references. 0 if each reference was compared with
            the others.
        false_alarm_rate (`float`, *optional*):
            Largest fraction of photos of good parts that are called anomalous. `None` if undefined.
        rate_interval (`tuple[float, float]`, *optional*):
            Range that contains the true rate with a probability of 90 %, if the photos are a random sample.
        deciding (`dict[str, list[str]]`):
            Photos with the largest scores, which determine the thresholds: `image` and `pixel`.
        outliers (`list[str]`):
            Photos that look unlike the others and are used, in descending order of their scores.
        kept, dropped (`list[str]`):
            Photos that the caller accepts, and photos that were left out by name or as outliers.
        near_duplicates (`list[tuple[str, str]]`):
            Photos that show the same picture as another one, and that one.
        identical, unreadable (`dict[str, str]`):
            Photos that are left out: the one with the same pixels, or why the photo cannot be read.
        known (`list[str]`):
            Photos that the references contained before.
        synthetic (`list[SyntheticDefect]`):
            Photos with synthetic defects.
        defects ([`DefectReport`], *optional*):
            Results with photos of defects.
        notes (`list[str]`):
            What was decided without being asked for.
        advice (`str`, *optional*):
            What would help to find more defects, if many are missed.
    """

    folder: Path | None
    bank: ReferenceBank
    decision: DecisionConfig
    scores: dict[str, float]
    peaks: dict[str, float]
    num_split: int = 0
    false_alarm_rate: float | None = None
    rate_interval: tuple[float, float] | None = None
    deciding: dict[str, list[str]] = field(default_factory=dict)
    outliers: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    identical: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    synthetic: list[SyntheticDefect] = field(default_factory=list)
    defects: DefectReport | None = None
    notes: list[str] = field(default_factory=list)
    advice: str | None = None

    @property
    def image_threshold(self) -> float:
        """Image threshold, in [0, 1]. An image is anomalous if its score is greater."""
        return self.decision.image_threshold

    @property
    def pixel_threshold(self) -> float:
        """Pixel threshold, in [0, 1]. A pixel is anomalous if its value in the anomaly map is greater."""
        return self.decision.pixel_threshold

    @property
    def detection(self) -> Detection | None:
        """How many defects are found: by cross-validation with photos of defects, else of synthetic defects."""
        if self.defects is not None:
            rate, count = self.defects.detection, self.defects.num_photos
            return None if rate is None else Detection(CROSS_VALIDATION, count, round(rate * count))
        return Detection.of_synthetic(self.synthetic, self.image_threshold) if self.synthetic else None

    def synthetic_counts(self, least: float = 0.0, below: float = 1.0) -> dict[str, int]:
        """
        Count the photos with synthetic defects.

        Args:
            least, below (`float`, defaults to 0.0 and 1.0): range of the lengths to count, as fractions of the
                shorter side of the photo.

        Returns:
            `dict[str, int]`: `num_photos`, `detected` (called anomalous) and `located` (marked in the mask).
        """
        counted = [one for one in self.synthetic if least <= one.size < below]
        return {
            "num_photos": len(counted),
            "detected": sum(one.score > self.image_threshold for one in counted),
            "located": sum(one.peak > self.pixel_threshold for one in counted),
        }

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to a dict that can be saved as JSON, without images and features.

        Returns:
            `dict[str, Any]`: the fields. `None` for undefined numbers.
        """
        defects = self.defects and {name: getattr(self.defects, name) for name in DefectReport.__dataclass_fields__}
        found: dict[str, Any] = {
            "checkpoint": None if self.folder is None else str(self.folder),
            "num_references": len(self.bank),
            "references": self.bank.checksum(),
            "image_threshold": self.image_threshold,
            "pixel_threshold": self.pixel_threshold,
            "calibrated": self.decision.calibration is not None,
            "num_scores": len(self.scores),
            "synthetic": self.synthetic_counts(),
            "defects": defects,
            "detection": None if self.detection is None else self.detection.to_dict(),
            "advice": self.advice,
        }
        for name in (
            "num_split", "false_alarm_rate", "rate_interval", "deciding", "outliers", "kept", "dropped",
            "near_duplicates", "identical", "unreadable", "known", "notes", "scores", "peaks",
        ):  # fmt: skip
            found[name] = getattr(self, name)
        return without_nan(found)


__all__ = ["Adaptation"]
