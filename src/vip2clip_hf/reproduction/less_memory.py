"""Errors of a row: try again with half the batch when the memory is not enough, and describe them in a sentence."""

import errno
import gc
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging


logger = logging.get_logger(__name__)


def with_less_memory(title: str, compute: Callable[[bool], Any]) -> Any:
    """
    Run a computation, and once more with half the batch if the memory is not enough.

    Args:
        title (`str`): what is computed, for the message.
        compute (`Callable[[bool], Any]`): the computation. Its argument is whether to halve the batch.

    Returns:
        Any: the result.

    Raises:
        RuntimeError: if the memory is not enough with half the batch either.
    """
    try:
        return compute(False)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    _free()
    logger.warning(f"{title}: out of memory. Trying again with half the batch.")
    try:
        return compute(True)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    _free()
    raise RuntimeError(
        "out of memory, also with half the batch; set a smaller per_device_train_batch_size or batch_size in the plan"
    )


def sentence_of(error: BaseException) -> str:
    """Return the message of an error in one line, with the type where the message alone does not explain it."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__  # without the name of the library's validator
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, RuntimeError, ValueError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_disk_error(error: BaseException) -> bool:
    """Whether an error means that nothing more can be written, so that the other rows would fail as well."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the device or of the machine is not enough."""
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        or "out of memory" in text
        or ("can't allocate memory" in text)
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["is_disk_error", "is_out_of_memory", "sentence_of", "with_less_memory"]
