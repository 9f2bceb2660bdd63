"""The steps of an exported model for the server, without torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..models.vip2clip.image_notices_vip2clip import collect_notices
from ..models.vip2clip.pipeline_steps_vip2clip import bank_of, decision_of
from ..runtime.detector import OnnxDetector
from .engine import Prepared, description


if TYPE_CHECKING:
    from ..models.vip2clip.results_vip2clip import AnomalyDetectionResult


class ExportedEngine:
    """
    Run an exported model step by step, see [`Engine`].

    Args:
        detector ([`OnnxDetector`]): the detector. Its default arguments are used.
    """

    def __init__(self, detector: OnnxDetector) -> None:
        self.detector = detector

    def prepare(self, content: bytes, name: str, heatmap: bool) -> Prepared:
        with collect_notices() as notices:
            photo = self.detector.prepare({"bytes": content, "path": name}, heatmap=heatmap)
        return Prepared({"photo": photo, "heatmap": heatmap}, list(dict.fromkeys(notices)))

    def forward(self, photos: Sequence[Prepared]) -> list[dict[str, Any]]:
        found = self.detector.forward([one.inputs["photo"] for one in photos])
        return [
            {**one.inputs, "score": score, "anomaly_map": anomaly_map}
            for one, (score, anomaly_map) in zip(photos, found)
        ]

    def finish(self, outputs: dict[str, Any], regions: bool) -> "AnomalyDetectionResult":
        photo, score, anomaly_map = outputs["photo"], outputs["score"], outputs["anomaly_map"]
        return self.detector.decide(photo, score, anomaly_map, heatmap=outputs["heatmap"], regions=regions)

    def describe(self) -> dict[str, Any]:
        model, options = self.detector.model, self.detector.options
        calibrated = decision_of(model, options)[1]
        return description(self.detector, options.get("threshold"), calibrated, bank_of(model, options))


__all__ = ["ExportedEngine"]
