"""Other methods of zero-shot and few-shot anomaly detection, as detectors of the same evaluation."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .clip import (
        ClipAnomalyDetectionConfig as ClipAnomalyDetectionConfig,
        ClipAnomalyDetectionOutput as ClipAnomalyDetectionOutput,
        ClipForAnomalyDetection as ClipForAnomalyDetection,
    )
    from .detector import BaselineDetector as BaselineDetector
    from .winclip import (
        WinClipConfig as WinClipConfig,
        WinClipForAnomalyDetection as WinClipForAnomalyDetection,
        WinClipOutput as WinClipOutput,
        WinClipReferences as WinClipReferences,
    )
