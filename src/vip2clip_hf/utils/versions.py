"""Versions of packages, recorded with results."""

import platform

from .._version import __version__


def versions() -> dict[str, str]:
    """
    Get the versions of this package, torch, transformers and Python.

    Returns:
        `dict[str, str]`: version by name.
    """
    import torch
    import transformers

    return {
        "vip2clip_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


__all__ = ["versions"]
