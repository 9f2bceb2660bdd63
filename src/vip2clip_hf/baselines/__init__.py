"""Other methods of zero-shot and few-shot anomaly detection, as detectors of the same evaluation."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .adaclip import AdaClipForAnomalyDetection as AdaClipForAnomalyDetection
    from .adaclip_configuration import AdaClipConfig as AdaClipConfig
    from .adaclip_outputs import AdaClipImageFeatures as AdaClipImageFeatures, AdaClipOutput as AdaClipOutput
    from .anomalyclip import (
        AnomalyClipForAnomalyDetection as AnomalyClipForAnomalyDetection,
        AnomalyClipOutput as AnomalyClipOutput,
    )
    from .anomalyclip_configuration import AnomalyClipConfig as AnomalyClipConfig
    from .april_gan import AprilGanForAnomalyDetection as AprilGanForAnomalyDetection
    from .april_gan_configuration import AprilGanConfig as AprilGanConfig
    from .april_gan_outputs import AprilGanOutput as AprilGanOutput, AprilGanReferences as AprilGanReferences
    from .april_gan_steps import published_few_shot_scores as published_few_shot_scores
    from .clip import (
        ClipAnomalyDetectionOutput as ClipAnomalyDetectionOutput,
        ClipForAnomalyDetection as ClipForAnomalyDetection,
    )
    from .clip_configuration import ClipAnomalyDetectionConfig as ClipAnomalyDetectionConfig
    from .convert_adaclip import convert_adaclip_checkpoint as convert_adaclip_checkpoint
    from .convert_anomalyclip import convert_anomalyclip_checkpoint as convert_anomalyclip_checkpoint
    from .convert_april_gan import convert_april_gan_checkpoint as convert_april_gan_checkpoint
    from .detector import BaselineDetector as BaselineDetector
    from .winclip import (
        WinClipForAnomalyDetection as WinClipForAnomalyDetection,
        WinClipOutput as WinClipOutput,
        WinClipReferences as WinClipReferences,
    )
    from .winclip_configuration import WinClipConfig as WinClipConfig
