"""Other methods of zero-shot and few-shot anomaly detection, as detectors of the same evaluation."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .adaclip import (
        AdaClipForAnomalyDetection as AdaClipForAnomalyDetection,
        AdaClipImageFeatures as AdaClipImageFeatures,
        AdaClipOutput as AdaClipOutput,
    )
    from .adaclip_configuration import AdaClipConfig as AdaClipConfig
    from .clip import (
        ClipAnomalyDetectionOutput as ClipAnomalyDetectionOutput,
        ClipForAnomalyDetection as ClipForAnomalyDetection,
    )
    from .clip_configuration import ClipAnomalyDetectionConfig as ClipAnomalyDetectionConfig
    from .convert_adaclip import convert_adaclip_checkpoint as convert_adaclip_checkpoint
    from .detector import BaselineDetector as BaselineDetector
    from .winclip import (
        WinClipForAnomalyDetection as WinClipForAnomalyDetection,
        WinClipOutput as WinClipOutput,
        WinClipReferences as WinClipReferences,
    )
    from .winclip_configuration import WinClipConfig as WinClipConfig
