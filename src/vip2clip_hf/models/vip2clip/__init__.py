"""ViP²-CLIP. Importing it registers configuration, model, image processor and pipeline with transformers.

The files in this folder, except this one and the converter, travel with a published checkpoint as remote code. They
import only torch, transformers and what these need, and each other by `from .name import ...`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_vip2clip import ViP2ClipConfig
from .convert_vip2clip_to_hf import convert_release_checkpoint
from .heatmap_vip2clip import draw_heatmap
from .image_loading_vip2clip import load_image, load_mask
from .image_processing_vip2clip import ViP2ClipImageProcessor
from .modeling_vip2clip import (
    ViP2ClipAlignmentOutput,
    ViP2ClipAnomalyDetectionOutput,
    ViP2ClipForAnomalyDetection,
    ViP2ClipPreTrainedModel,
)
from .pipeline_anomaly_detection import AnomalyDetectionPipeline


def _register():
    AutoConfig.register("vip2clip", ViP2ClipConfig, exist_ok=True)
    AutoModel.register(ViP2ClipConfig, ViP2ClipForAnomalyDetection, exist_ok=True)
    # One class for both backends: where torchvision is installed the library would otherwise look for a second one.
    backends = {"pil": ViP2ClipImageProcessor, "torchvision": ViP2ClipImageProcessor}
    AutoImageProcessor.register(ViP2ClipConfig, image_processor_classes=backends, exist_ok=True)
    if "anomaly-detection" not in PIPELINE_REGISTRY.supported_tasks:
        # AutoModel, not our class: the name has to be found in transformers when a saved folder is loaded.
        PIPELINE_REGISTRY.register_pipeline(
            "anomaly-detection", pipeline_class=AnomalyDetectionPipeline, pt_model=AutoModel, type="image"
        )


_register()

__all__ = [
    "AnomalyDetectionPipeline",
    "ViP2ClipAlignmentOutput",
    "ViP2ClipAnomalyDetectionOutput",
    "ViP2ClipConfig",
    "ViP2ClipForAnomalyDetection",
    "ViP2ClipImageProcessor",
    "ViP2ClipPreTrainedModel",
    "convert_release_checkpoint",
    "draw_heatmap",
    "load_image",
    "load_mask",
]
