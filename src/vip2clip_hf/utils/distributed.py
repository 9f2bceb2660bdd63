"""What processes tell each other. With one process, and without torch.distributed, all of it does nothing."""

from typing import Any

import torch.distributed as dist


def world() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_first(value: Any) -> Any:
    """What the first process holds, for all of them."""
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """What every process holds, in their order."""
    values: list[Any] = [None] * world()[1]
    if len(values) == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


__all__ = ["from_all", "from_first", "world"]
