"""Register the baselines with `AutoConfig`, `AutoModel` and `AutoImageProcessor`. `import vip2clip_hf` does this."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from .adaclip import AdaClipForAnomalyDetection
from .adaclip_configuration import AdaClipConfig
from .anomalyclip import AnomalyClipForAnomalyDetection
from .anomalyclip_configuration import AnomalyClipConfig
from .april_gan import AprilGanForAnomalyDetection
from .april_gan_configuration import AprilGanConfig
from .base import BaselineModel
from .clip import ClipForAnomalyDetection
from .clip_configuration import ClipAnomalyDetectionConfig
from .configuration import BaselineConfig
from .winclip import WinClipForAnomalyDetection
from .winclip_configuration import WinClipConfig


METHODS: dict[type[BaselineConfig], type[BaselineModel]] = {
    ClipAnomalyDetectionConfig: ClipForAnomalyDetection,
    AdaClipConfig: AdaClipForAnomalyDetection,
    WinClipConfig: WinClipForAnomalyDetection,
    AprilGanConfig: AprilGanForAnomalyDetection,
    AnomalyClipConfig: AnomalyClipForAnomalyDetection,
}


def register() -> None:
    """Register every method. Calling it again changes nothing."""
    # The same class for both backends. If torchvision is installed, the library looks for a "torchvision" class.
    backends: dict[str, type] = {"pil": ViP2ClipImageProcessor, "torchvision": ViP2ClipImageProcessor}
    for config, model in METHODS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoImageProcessor.register(config, image_processor_classes=backends, exist_ok=True)


register()

__all__ = ["METHODS", "register"]
