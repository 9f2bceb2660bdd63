"""Try again with half the batch when the memory is not enough."""

import gc
from collections.abc import Callable
from typing import Any

import torch
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


__all__ = ["is_out_of_memory", "with_less_memory"]
