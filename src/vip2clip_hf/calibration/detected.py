"""How many photos of defects are found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .rates import detection_interval
from .synthetic_defects import SIZES, SyntheticDefect


# Where the defects come from.
SYNTHETIC, PHOTOS, CROSS_VALIDATION, SAME_PHOTOS = "synthetic", "photos", "cross-validation", "same photos"
# Below this rate, many defects are missed.
GOOD_RATE = 0.8


@dataclass(frozen=True)
class Detection:
    """
    How many photos of defects are called anomalous at the image threshold.

    Args:
        method (`str`):
            Where the defects come from: `"synthetic"` (pasted into photos of good parts), `"photos"` (photos of
            defects that chose nothing), `"cross-validation"` (photos of defects, each tested with thresholds chosen on
            others) or `"same photos"` (those the thresholds were chosen from, which is too optimistic).
        num_photos, num_found (`int`):
            Number of photos of defects, and of those called anomalous.
        sizes (`list[dict[str, Any]]`):
            Of synthetic defects, by length as a fraction of the shorter side: `least`, `below`, `num_photos` and
            `num_found`.
    """

    method: str
    num_photos: int
    num_found: int
    sizes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Fraction of the photos of defects that are found, in [0, 1]."""
        return self.num_found / self.num_photos

    @property
    def interval(self) -> tuple[float, float] | None:
        """
        Range that contains the true rate with a probability of 90 %, if the photos are a random sample of the defects.
        `None` for synthetic defects, which are not a sample of yours, and for photos that chose the thresholds.
        """
        if self.method not in (PHOTOS, CROSS_VALIDATION):
            return None
        return detection_interval(self.num_found, self.num_photos)

    @property
    def is_poor(self) -> bool:
        """Whether fewer than 80 % are found."""
        return self.rate < GOOD_RATE

    @classmethod
    def of_synthetic(cls, found: Sequence[SyntheticDefect], image_threshold: float) -> "Detection":
        """
        Count synthetic defects.

        Args:
            found (`Sequence[SyntheticDefect]`): photos with synthetic defects, at least one.
            image_threshold (`float`): the image threshold, in [0, 1].

        Returns:
            [`Detection`]: the counts, by length in two halves.
        """
        middle, sizes = sum(SIZES) / 2, []
        for least, below in ((SIZES[0], middle), (middle, SIZES[1])):
            scores = [one.score for one in found if least <= one.size < below]
            count = sum(score > image_threshold for score in scores)
            sizes.append({"least": least, "below": below, "num_photos": len(scores), "num_found": count})
        sizes = [size for size in sizes if size["num_photos"]]
        return cls(SYNTHETIC, len(found), sum(one.score > image_threshold for one in found), sizes)

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to a dict that can be saved as JSON.

        Returns:
            `dict[str, Any]`: the fields, `rate` and `interval`.
        """
        interval = self.interval
        found: dict[str, Any] = {"method": self.method, "num_photos": self.num_photos, "num_found": self.num_found}
        found.update(rate=self.rate, interval=None if interval is None else list(interval))
        return {**found, "sizes": self.sizes} if self.sizes else found

    def describe(self) -> list[str]:
        """
        Describe the detection.

        Returns:
            `list[str]`: two sentences.
        """
        counts = f"{self.num_found} of {self.num_photos}"
        if self.method == SYNTHETIC:
            parts = ", ".join(
                f"{100 * size['least']:.0f} to {100 * size['below']:.0f} %{'' if number else ' of the side'}: "
                f"{size['num_found']} of {size['num_photos']}"
                for number, size in enumerate(self.sizes)
            )
            return [
                f"Detection, roughly: {counts} synthetic defects ({parts}).",
                "Your defects can be easier or harder to find; measure this with --defects.",
            ]
        text = f"Detection: {counts} photos of defects found ({100 * self.rate:.0f} %)"
        interval = self.interval
        if interval is None:
            return [f"{text}.", "They have chosen the thresholds, so expect less on new ones."]
        low, high = (100 * end for end in interval)
        return [
            f"{text}{', by cross-validation' if self.method == CROSS_VALIDATION else ''}.",
            f"The true rate lies between {low:.0f} and {high:.0f} % with a probability of 90 %, if they are a random "
            "sample.",
        ]


__all__ = ["CROSS_VALIDATION", "GOOD_RATE", "PHOTOS", "SAME_PHOTOS", "SYNTHETIC", "Detection"]
