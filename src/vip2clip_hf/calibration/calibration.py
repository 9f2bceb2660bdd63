"""Result of a calibration."""

import copy
from dataclasses import dataclass, field
from typing import Any

from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig


@dataclass
class Calibration:
    """
    Result of a calibration: thresholds, and how they were chosen.

    Args:
        content (`dict[str, Any]`):
            Value of `config.calibration`: `method` (`"conformal"`, `"f1"` or `"recall"`), `false_alarm_rate` or
            `recall`, `date`, `settings` (tiles and top-k used to compute the scores), and a dict each for `image` and
            `pixel`, with `num_images`, `threshold` and, for `"conformal"`, `scores`.
        suspicious (`list[str]`):
            Calibration images that look anomalous, in descending order of their scores.
        unreadable (`dict[str, str]`):
            Images that could not be read, and the reason. They are not part of the calibration.
    """

    content: dict[str, Any]
    suspicious: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def image_threshold(self) -> float:
        """Image threshold, in [0, 1]. An image is anomalous if its score is greater."""
        return self.content["image"]["threshold"]

    @property
    def pixel_threshold(self) -> float:
        """Pixel threshold, in [0, 1]. A pixel is anomalous if its value in the anomaly map is greater."""
        return self.content["pixel"]["threshold"]

    def apply(self, config: ViP2ClipConfig) -> None:
        """
        Set the thresholds and the calibration of a configuration.

        Args:
            config ([`ViP2ClipConfig`]): configuration of a model in memory.

        Raises:
            ValueError: if a value is invalid.
        """
        config.image_threshold, config.pixel_threshold = self.image_threshold, self.pixel_threshold
        config.calibration = copy.deepcopy(self.content)
        config.check_values()


__all__ = ["Calibration"]
