"""Communication between processes. One process if torch.distributed is not initialized."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist


T = TypeVar("T")


def world() -> tuple[int, int]:
    """
    Get the position of this process.

    Returns:
        `tuple[int, int]`: rank of this process, and number of processes.
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_first(value: Any) -> Any:
    """
    Broadcast a value from the first process.

    Args:
        value: picklable value; the values of the other processes are ignored.

    Returns:
        The value of the first process, on every process.
    """
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """
    Gather the values of all processes.

    Args:
        value: picklable value of this process.

    Returns:
        `list`: one value per process, in rank order.
    """
    values: list[Any] = [None] * world()[1]
    if len(values) == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


def on_first(function: Callable[..., T], *arguments: Any) -> T:
    """
    Call a function in the first process. An error is raised in every process, so that none waits for it.

    Args:
        function (`Callable`): function that returns a picklable value.
        arguments: its arguments.

    Returns:
        The value, on every process.
    """
    value: Any = None
    error: Exception | None = None
    if world()[0] == 0:
        try:
            value = function(*arguments)
        except Exception as raised:
            error = raised
    value, error = from_first((value, error))
    if error is not None:
        raise error
    return value


__all__ = ["from_all", "from_first", "on_first", "world"]
