"""Bulk prediction: score any number of images and write a table. The model as a detector of the evaluation."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .detector import ViP2ClipDetector as ViP2ClipDetector
    from .images import find_source as find_source
    from .prediction import predict_checkpoint as predict_checkpoint, predict_to_folder as predict_to_folder
