"""`from vip2clip_hf.metrics import AnomalyMetrics`, wherever it lives."""

from .evaluation.metrics import METRICS, AnomalyMetrics


__all__ = ["METRICS", "AnomalyMetrics"]
