"""Choose the engine of the server. Only that of the detector is imported."""

from typing import Any

from ..runtime.detector import OnnxDetector
from .engine import Engine


def engine_of(detector: Any) -> Engine:
    """
    Choose the engine of a detector.

    Args:
        detector ([`AnomalyDetectionPipeline`] or [`OnnxDetector`]): the detector. Its default arguments are used.

    Returns:
        [`Engine`]: the engine.

    Raises:
        ValueError: if the references of the detector were read with other tiles.
    """
    detector.score_settings()  # raises if the references were read with other tiles
    if isinstance(detector, OnnxDetector):
        from .exported_engine import ExportedEngine

        return ExportedEngine(detector)
    from .pipeline_engine import PipelineEngine

    return PipelineEngine(detector)


__all__ = ["engine_of"]
