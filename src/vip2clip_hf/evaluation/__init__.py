"""Metrics and the evaluation of a model."""

from pathlib import Path


# For `evaluate.load(EVALUATE_MODULE)`, of the library evaluate.
EVALUATE_MODULE = str(Path(__file__).with_name("anomaly_metrics"))
