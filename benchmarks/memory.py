"""Peak memory of a process or of a GPU."""

from pathlib import Path

import torch


class ProcessMemory:
    """What the process takes at most from now on, beyond what it has now."""

    def __init__(self):
        self.start = self._status("VmRSS")

    def peak(self) -> float:
        return self._status("VmHWM") - self.start

    @staticmethod
    def _status(name: str) -> float:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
        raise RuntimeError(f"/proc/self/status has no {name}.")


class CudaMemory:
    def __init__(self):
        torch.cuda.reset_peak_memory_stats()
        self.start = torch.cuda.memory_allocated()

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() - self.start
