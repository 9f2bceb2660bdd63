"""Read the `.pth` files of published codes, without executing code from them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def read_tensors(checkpoint: str | os.PathLike | Mapping, what: str) -> Any:
    """
    Read a `.pth` file that contains only tensors.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping`): the file. A mapping is returned as it is.
        what (`str`): the code that has written the file, for messages.

    Returns:
        The content, on the CPU.

    Raises:
        OSError: if the file is missing, damaged, or contains something else than tensors.
    """
    if isinstance(checkpoint, Mapping):
        return checkpoint
    path = Path(checkpoint)
    if not path.is_file():
        raise OSError(f"Checkpoint {str(path)!r} not found; expected a .pth file of {what}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip or runtime error, depending on the damage
        raise OSError(
            f"Checkpoint {str(path)!r} could not be read as tensors ({type(error).__name__}); expected a complete "
            f".pth file of {what}, which contains only tensors."
        ) from error


__all__ = ["read_tensors"]
