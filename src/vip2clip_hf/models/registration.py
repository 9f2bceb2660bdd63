"""Register configuration, model, image processor and pipeline of ViP²-CLIP with transformers. Importing it does so."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .vip2clip.configuration_vip2clip import ViP2ClipConfig
from .vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from .vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from .vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline


AutoConfig.register("vip2clip", ViP2ClipConfig, exist_ok=True)
AutoModel.register(ViP2ClipConfig, ViP2ClipForAnomalyDetection, exist_ok=True)
# The same class for both backends. If torchvision is installed, the library looks for a "torchvision" class.
_BACKENDS: dict[str, type] = {"pil": ViP2ClipImageProcessor, "torchvision": ViP2ClipImageProcessor}
AutoImageProcessor.register(ViP2ClipConfig, image_processor_classes=_BACKENDS, exist_ok=True)
if "anomaly-detection" not in PIPELINE_REGISTRY.supported_tasks:
    # Not ViP2ClipForAnomalyDetection: the library looks up the class name in transformers when it loads a folder.
    PIPELINE_REGISTRY.register_pipeline(
        "anomaly-detection", pipeline_class=AnomalyDetectionPipeline, pt_model=AutoModel, type="image"
    )
