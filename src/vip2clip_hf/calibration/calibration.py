"""Result of a calibration."""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..models.vip2clip.decision_config_vip2clip import DecisionConfig


if TYPE_CHECKING:
    from .detection import Detection


@dataclass
class Calibration:
    """
    Result of a calibration: thresholds, and how they were chosen.

    Args:
        decision ([`DecisionConfig`]):
            Thresholds, minimum area of a region, and the tiles and top-k they were chosen with. `decision.calibration`
            describes how: `method` (`"conformal"`, `"f1"` or `"recall"`), `false_alarm_rate` or `recall`, `date`,
            `num_images`, `settings` (tiles and top-k) and `fingerprint` (what else determines the scores).
        suspicious (`list[str]`):
            Calibration images that look anomalous, in descending order of their scores.
        unreadable (`dict[str, str]`):
            Images that could not be read, and the reason. They are not part of the calibration.
        detection ([`Detection`], *optional*):
            How many defects are found, see [`estimate_detection`].
    """

    decision: DecisionConfig
    suspicious: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    detection: "Detection | None" = None

    @property
    def image_threshold(self) -> float:
        """Image threshold, in [0, 1]. An image is anomalous if its score is greater."""
        return self.decision.image_threshold

    @property
    def pixel_threshold(self) -> float:
        """Pixel threshold, in [0, 1]. A pixel is anomalous if its value in the anomaly map is greater."""
        return self.decision.pixel_threshold

    def apply(self, model: Any) -> None:
        """
        Set the `decision` of a model in memory.

        Args:
            model ([`ViP2ClipForAnomalyDetection`]): the model. Of an [`AnomalyDetectionPipeline`], its model and its
                image processor are set.

        Raises:
            TypeError: if it is something else, such as the configuration of a model.
        """
        parts = [getattr(model, name) for name in ("model", "image_processor") if hasattr(model, name)] or [model]
        for part in parts:
            if not hasattr(part, "decision"):
                raise TypeError(
                    f"model is a {type(part).__name__}; expected a ViP2ClipForAnomalyDetection or an "
                    "AnomalyDetectionPipeline."
                )
        for part in parts:
            part.decision = copy.deepcopy(self.decision)


__all__ = ["Calibration"]
