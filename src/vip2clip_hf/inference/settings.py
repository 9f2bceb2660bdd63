"""Settings that the rows of a prediction depend on."""

from typing import Any

from ..models.loading import model_checksum, processor_settings
from ..models.vip2clip.arguments_vip2clip import label_names
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.versions import SCORING_VERSION


def scoring_settings(detector: AnomalyDetectionPipeline, threshold: tuple[float, float]) -> dict[str, Any]:
    """
    Collect everything that the row of an image depends on, except for the image.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        threshold (`tuple[float, float]`): image and pixel threshold in use.

    Returns:
        `dict[str, Any]`: JSON-serializable settings.
    """
    model, decision = detector.model, detector.decision
    return {
        "scoring_version": SCORING_VERSION,
        "model_checksum": model_checksum(model),  # type: ignore[arg-type]  # declared as any model
        "image_processor": processor_settings(detector.image_processor),
        "labels": label_names(model.config.id2label),
        "dtype": str(model.dtype).removeprefix("torch."),
        "image_threshold": threshold[0],
        "pixel_threshold": threshold[1],
        "min_region_area": decision.min_region_area,
        "calibration": decision.checksum() if decision.calibration is not None else None,
        **detector.score_settings(),
        **detector.reading_options(),
    }


__all__ = ["scoring_settings"]
