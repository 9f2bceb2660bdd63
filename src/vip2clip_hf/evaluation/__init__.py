"""Metrics, evaluation of models and other detectors, and tables of results."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


# Path of the metrics for `evaluate.load(EVALUATE_MODULE)`.
EVALUATE_MODULE = str(Path(__file__).with_name("anomaly_metrics"))

__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .detector import Detector as Detector, TrainableDetector as TrainableDetector
    from .evaluator import evaluate_detector as evaluate_detector
    from .metrics import METRICS as METRICS, AnomalyMetrics as AnomalyMetrics
    from .model_evaluation import evaluate_model as evaluate_model
    from .reference_sets import ReferenceChoice as ReferenceChoice
    from .runner import evaluate_checkpoint as evaluate_checkpoint, evaluate_sets as evaluate_sets
