"""Describe the hardware of a measurement."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch


_CPU_INFO = Path("/proc/cpuinfo")


def cpu_model() -> str:
    """
    Get the name of the processor.

    Returns:
        `str`: the model name in `/proc/cpuinfo`; without this file or entry, the name that the platform gives.
    """
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """
    Count the CPU cores that this process may use.

    Returns:
        `int`: the number, at least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_hardware(device: "torch.device | str") -> dict[str, Any]:
    """
    Describe the device of a measurement.

    Args:
        device (`torch.device` or `str`): the device, such as `"cuda:0"` or `"cpu"`.

    Returns:
        `dict`: `device` (its type), `name` (of the card or the processor), `cores` (CPU cores that this process may
        use) and `threads` (threads of torch).
    """
    import torch

    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {"device": device.type, "name": name, "cores": num_cores(), "threads": torch.get_num_threads()}


__all__ = ["cpu_model", "describe_hardware", "num_cores"]
