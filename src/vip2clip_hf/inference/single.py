"""Score one image as bulk prediction does: its row in the table, and its heatmap."""

from typing import Any

import torch
from PIL import Image

from ..models.vip2clip.fingerprint_vip2clip import is_calibrated
from ..models.vip2clip.heatmap_vip2clip import draw_heatmap
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline


def score_image(
    detector: AnomalyDetectionPipeline,
    image: Image.Image,
    threshold: float | tuple[float | None, float | None] | None = None,
) -> dict[str, Any]:
    """
    Score an image and decide, at the size of the model.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        image (`PIL.Image.Image`): the image, for example of [`AnomalyDetectionPipeline.load`].
        threshold (*optional*): see [`AnomalyDetectionPipeline`].

    Returns:
        `dict[str, Any]`: `score`, `label`, `anomaly_map` (float32, in [0, 1], of the size of the model, or of the
        image with tiles), `mask` (bool) and, from a calibrated checkpoint, `p_value`.

    Raises:
        ValueError: if score or map are not finite.
    """
    found, decision = detector.decision_map(image), detector.decision
    (result,) = detector.image_processor.post_process_anomaly_detection(
        {
            "scores": torch.tensor([found["score"]]),
            "anomaly_maps": torch.from_numpy(found["anomaly_map"])[None],
        },
        threshold=threshold,
        id2label=detector.model.config.id2label,
        decision=decision,
        calibrated=is_calibrated(detector.model, detector.score_settings(), decision),
    )
    return result


def as_row(result: dict[str, Any]) -> dict[str, Any]:
    """
    Convert a result of post-processing to the columns of the table.

    Args:
        result (`dict[str, Any]`): result for an image at the size of the model.

    Returns:
        `dict[str, Any]`: `score`, `label`, `anomalous_area` and, from a calibrated checkpoint, `p_value`.
    """
    row = {name: result[name] for name in ("score", "label", "p_value") if result.get(name) is not None}
    return {**row, "anomalous_area": float(result["mask"].cpu().numpy().mean())}


def heatmap_of(image: Image.Image, anomaly_map: torch.Tensor, image_processor: ViP2ClipImageProcessor) -> Image.Image:
    """
    Draw an anomaly map over its image.

    Args:
        image (`PIL.Image.Image`): the image.
        anomaly_map (`torch.Tensor` of shape `(height, width)`): float, in [0, 1]. It is resized to the image.
        image_processor ([`ViP2ClipImageProcessor`]): resizes the map.

    Returns:
        `PIL.Image.Image`: the heatmap, of the size of the image.
    """
    (result,) = image_processor.post_process_anomaly_detection(
        {"scores": torch.zeros(1), "anomaly_maps": anomaly_map[None]}, [(image.height, image.width)]
    )
    return draw_heatmap(image, result["anomaly_map"].numpy())


def reason_of(error: BaseException) -> str:
    """
    Convert an error to text for the table.

    Args:
        error (`BaseException`): the error.

    Returns:
        `str`: its message. Characters that UTF-8 cannot encode are escaped.
    """
    return str(error).encode("utf-8", "backslashreplace").decode()


__all__ = ["as_row", "heatmap_of", "reason_of", "score_image"]
