"""Helpers for files, processes, JSON, optional packages and figures."""
