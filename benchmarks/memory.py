"""Peak memory of a process or a GPU."""

from pathlib import Path

import torch


class ProcessMemory:
    """Peak memory of this process on the CPU, beyond the memory in use when the object is created. Needs Linux."""

    def __init__(self) -> None:
        self.start = self._status("VmRSS")

    def peak(self) -> float:
        """Return the peak memory since the start, in bytes."""
        return self._status("VmHWM") - self.start

    @staticmethod
    def _status(name: str) -> float:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
        raise RuntimeError(f"/proc/self/status contains no entry {name}.")


class CudaMemory:
    """Peak memory of torch on the GPU, beyond the memory in use when the object is created."""

    def __init__(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self.start = torch.cuda.memory_allocated()

    def peak(self) -> float:
        """Return the peak memory since the start, in bytes."""
        return torch.cuda.max_memory_allocated() - self.start
