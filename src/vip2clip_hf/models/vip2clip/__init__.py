"""ViP²-CLIP. Importing this package registers configuration, model, image processor and pipeline with transformers.

The files in this folder, except this one and the converter, are published with checkpoints as remote code. They import
only torch, transformers and the dependencies of these, and each other with `from .name import ...`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .call_types_vip2clip import CallOptions, ModelOptions
from .configuration_vip2clip import ViP2ClipConfig
from .convert_vip2clip_to_hf import convert_release_checkpoint
from .decision_config_vip2clip import DecisionConfig
from .heatmap_vip2clip import draw_heatmap
from .image_loading_vip2clip import load_image
from .image_processing_vip2clip import ViP2ClipImageProcessor
from .mask_loading_vip2clip import load_mask
from .mask_options_vip2clip import MaskOptions
from .modeling_vip2clip import (
    ViP2ClipAlignmentOutput,
    ViP2ClipAnomalyDetectionOutput,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageFeatures,
    ViP2ClipPromptFeatures,
)
from .pipeline_anomaly_detection import AnomalyDetectionPipeline
from .pretrained_vip2clip import ViP2ClipPreTrainedModel
from .provenance_vip2clip import Provenance
from .reference_bank_vip2clip import ReferenceBank
from .reference_records_vip2clip import LeftOutPhoto, ReferenceOptions, ReferencePhoto
from .results_vip2clip import AnomalyDetectionResult, AnomalyRegion, decode_result


def _register() -> None:
    AutoConfig.register("vip2clip", ViP2ClipConfig, exist_ok=True)
    AutoModel.register(ViP2ClipConfig, ViP2ClipForAnomalyDetection, exist_ok=True)
    # The same class for both backends. If torchvision is installed, the library looks for a "torchvision" class.
    backends: dict[str, type] = {"pil": ViP2ClipImageProcessor, "torchvision": ViP2ClipImageProcessor}
    AutoImageProcessor.register(ViP2ClipConfig, image_processor_classes=backends, exist_ok=True)
    if "anomaly-detection" not in PIPELINE_REGISTRY.supported_tasks:
        # Not ViP2ClipForAnomalyDetection: the library looks up the class name in transformers when it loads a folder.
        PIPELINE_REGISTRY.register_pipeline(
            "anomaly-detection", pipeline_class=AnomalyDetectionPipeline, pt_model=AutoModel, type="image"
        )


_register()

__all__ = [
    "AnomalyDetectionPipeline",
    "AnomalyDetectionResult",
    "AnomalyRegion",
    "CallOptions",
    "DecisionConfig",
    "LeftOutPhoto",
    "MaskOptions",
    "ModelOptions",
    "Provenance",
    "ReferenceBank",
    "ReferenceOptions",
    "ReferencePhoto",
    "ViP2ClipAlignmentOutput",
    "ViP2ClipAnomalyDetectionOutput",
    "ViP2ClipConfig",
    "ViP2ClipForAnomalyDetection",
    "ViP2ClipImageFeatures",
    "ViP2ClipImageProcessor",
    "ViP2ClipPreTrainedModel",
    "ViP2ClipPromptFeatures",
    "convert_release_checkpoint",
    "decode_result",
    "draw_heatmap",
    "load_image",
    "load_mask",
]
