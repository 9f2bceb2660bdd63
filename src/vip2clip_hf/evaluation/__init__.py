"""Metrics and the evaluation of a model."""
