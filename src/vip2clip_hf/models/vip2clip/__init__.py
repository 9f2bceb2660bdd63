"""ViP²-CLIP: configuration, model, image processor and pipeline.

The files in this folder, except this one and the converter, are published with checkpoints as remote code. They import
only torch, transformers and the dependencies of these, and each other with `from .name import ...`. Those that the
runtime without torch uses import only NumPy and Pillow.
"""

from typing import TYPE_CHECKING

from ...utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .call_types_vip2clip import CallOptions as CallOptions, ModelOptions as ModelOptions
    from .configuration_vip2clip import ViP2ClipConfig as ViP2ClipConfig
    from .convert_vip2clip_to_hf import convert_release_checkpoint as convert_release_checkpoint
    from .decision_config_vip2clip import DecisionConfig as DecisionConfig
    from .heatmap_vip2clip import draw_heatmap as draw_heatmap
    from .image_loading_vip2clip import load_image as load_image
    from .image_processing_vip2clip import ViP2ClipImageProcessor as ViP2ClipImageProcessor
    from .mask_loading_vip2clip import load_mask as load_mask
    from .mask_options_vip2clip import MaskOptions as MaskOptions
    from .modeling_vip2clip import (
        ViP2ClipAlignmentOutput as ViP2ClipAlignmentOutput,
        ViP2ClipAnomalyDetectionOutput as ViP2ClipAnomalyDetectionOutput,
        ViP2ClipForAnomalyDetection as ViP2ClipForAnomalyDetection,
        ViP2ClipImageFeatures as ViP2ClipImageFeatures,
        ViP2ClipPromptFeatures as ViP2ClipPromptFeatures,
    )
    from .pipeline_anomaly_detection import AnomalyDetectionPipeline as AnomalyDetectionPipeline
    from .pretrained_vip2clip import ViP2ClipPreTrainedModel as ViP2ClipPreTrainedModel
    from .provenance_vip2clip import Provenance as Provenance
    from .reference_bank_vip2clip import ReferenceBank as ReferenceBank
    from .reference_records_vip2clip import (
        LeftOutPhoto as LeftOutPhoto,
        ReferenceOptions as ReferenceOptions,
        ReferencePhoto as ReferencePhoto,
    )
    from .results_vip2clip import (
        AnomalyDetectionResult as AnomalyDetectionResult,
        AnomalyRegion as AnomalyRegion,
        decode_result as decode_result,
    )
