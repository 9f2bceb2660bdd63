"""Versions of the packages that produce results."""

import platform

from .._version import __version__


def versions() -> dict[str, str]:
    """Versions of this package, torch, transformers and Python, to be stored with results."""
    import torch
    import transformers

    return {
        "vip2clip_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


__all__ = ["versions"]
