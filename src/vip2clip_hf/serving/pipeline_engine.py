"""The steps of a pipeline for the server."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..models.vip2clip.fingerprint_vip2clip import is_calibrated
from ..models.vip2clip.image_notices_vip2clip import collect_notices
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .engine import Prepared, description


if TYPE_CHECKING:
    from ..models.vip2clip.results_vip2clip import AnomalyDetectionResult


class PipelineEngine:
    """
    Run a pipeline step by step, see [`Engine`].

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline. Its default arguments are used.
    """

    def __init__(self, detector: AnomalyDetectionPipeline) -> None:
        self.detector = detector

    def prepare(self, content: bytes, name: str, heatmap: bool) -> Prepared:
        options = {**self.detector._preprocess_params, "heatmap": heatmap}
        with collect_notices() as notices:
            inputs = self.detector.preprocess({"bytes": content, "path": name}, **options)
        return Prepared(inputs, list(dict.fromkeys(notices)))

    def forward(self, photos: Sequence[Prepared]) -> list[dict[str, Any]]:
        inputs = [photo.inputs for photo in photos]
        batch = {
            "pixel_values": torch.cat([one["pixel_values"] for one in inputs]),
            "target_size": [one["target_size"] for one in inputs],
            "tiles": [one["tiles"] for one in inputs],
            "image": [None] * len(inputs),
        }
        outputs = self.detector.forward(batch, **self.detector._forward_params)
        scores = outputs["scores"].reshape(-1)
        return [
            {
                "scores": scores[position : position + 1],
                "anomaly_maps": outputs["anomaly_maps"][position][None],
                "target_size": one["target_size"],
                "image": one["image"],
            }
            for position, one in enumerate(inputs)
        ]

    def finish(self, outputs: dict[str, Any], regions: bool) -> "AnomalyDetectionResult":
        return self.detector.postprocess(outputs, **{**self.detector._postprocess_params, "regions": regions})

    def describe(self) -> dict[str, Any]:
        detector = self.detector
        calibrated = is_calibrated(detector.model, detector.score_settings(), detector.decision)
        return description(detector, detector._postprocess_params.get("threshold"), calibrated, detector.references)


__all__ = ["PipelineEngine"]
