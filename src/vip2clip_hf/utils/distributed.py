"""Communication between processes. One process if torch.distributed is not initialized."""

from typing import Any

import torch.distributed as dist


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


__all__ = ["from_all", "from_first", "world"]
