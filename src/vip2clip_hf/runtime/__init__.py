"""Run an exported model without torch and transformers: NumPy, Pillow and onnxruntime or OpenVINO."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .detector import OnnxDetector as OnnxDetector
