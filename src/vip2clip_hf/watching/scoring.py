"""Score the photos of a watcher, and tell a broken photo from a broken model."""

import os
from typing import Any

from PIL import Image

from ..inference.single import as_row, heatmap_of, score_image
from ..models.vip2clip.arguments_vip2clip import threshold_pair
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline


class ModelError(RuntimeError):
    """The model fails for any photo, so the watcher cannot continue."""


class Scorer:
    """
    A pipeline that computes rows.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline.
        threshold (`float` or `tuple[float, float]`, *optional*): see [`AnomalyDetectionPipeline`].
        heatmaps (`bool`): whether to draw heatmaps.

    Attributes:
        threshold (`tuple[float, float]`): image and pixel threshold in use.
    """

    def __init__(self, detector: AnomalyDetectionPipeline, threshold: Any, heatmaps: bool) -> None:
        self.detector, self.heatmaps = detector, heatmaps
        decision = detector.decision
        self.threshold = threshold_pair(threshold, (decision.image_threshold, decision.pixel_threshold))

    def load(self, data: bytes, path: str | os.PathLike[str]) -> Image.Image:
        """
        Decode a photo.

        Args:
            data (`bytes`): contents of its file.
            path (`str` or `os.PathLike`): the file, for messages.

        Returns:
            `PIL.Image.Image`: the upright photo, in mode RGB.

        Raises:
            OSError: if it cannot be decoded.
            ValueError: if it is of a kind that is refused.
        """
        return self.detector.load({"bytes": data, "path": os.fspath(path)})

    def score(self, image: Image.Image) -> tuple[dict[str, Any], Image.Image | None]:
        """
        Score a photo.

        Args:
            image (`PIL.Image.Image`): result of [`Scorer.load`].

        Returns:
            `tuple[dict[str, Any], PIL.Image.Image | None]`: `score`, `label`, `anomalous_area` and, from a calibrated
            checkpoint, `p_value`; and the heatmap.
        """
        result = score_image(self.detector, image, self.threshold)
        if not self.heatmaps:
            return as_row(result), None
        return as_row(result), heatmap_of(image, result["anomaly_map"], self.detector.image_processor)

    def probe(self) -> None:
        """
        Score a gray photo, to check that the model works.

        Raises:
            ModelError: if it does not.
        """
        try:
            self.score(Image.new("RGB", (64, 64), (127, 127, 127)))
        except Exception as error:
            raise ModelError(f"The model fails for a plain gray photo: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """
    Describe an error of the model in one line.

    Args:
        error (`BaseException`): the error.

    Returns:
        `str`: its type and its first line.
    """
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


__all__ = ["ModelError", "Scorer", "describe"]
