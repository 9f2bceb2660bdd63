"""Thresholds and where they come from."""

import copy
from dataclasses import dataclass, field
from typing import Any

from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig


@dataclass
class Calibration:
    """
    Thresholds and where they come from.

    Args:
        content (`dict`):
            What goes into `config.calibration`: `method` ("conformal", "f1" or "recall"), `false_alarm_rate`, `date`,
            `settings` (tiles and top-k the scores were computed with), and for `image` and `pixel` `num_images`,
            `threshold` and, with "conformal", `scores`.
        suspicious (`list[str]`):
            Calibration images that look anomalous, the worst first.
        unreadable (`dict[str, str]`):
            Images that could not be read, and why; they do not count.
    """

    content: dict[str, Any]
    suspicious: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def image_threshold(self) -> float:
        """In [0, 1]; an image is anomalous when its score is greater."""
        return self.content["image"]["threshold"]

    @property
    def pixel_threshold(self) -> float:
        """In [0, 1]; a pixel is anomalous when its value is greater."""
        return self.content["pixel"]["threshold"]

    def apply(self, config: ViP2ClipConfig):
        """Put thresholds and calibration into a configuration."""
        config.image_threshold, config.pixel_threshold = self.image_threshold, self.pixel_threshold
        config.calibration = copy.deepcopy(self.content)
        config.check_values()


__all__ = ["Calibration"]
