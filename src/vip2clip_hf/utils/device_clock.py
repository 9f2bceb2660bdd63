"""Measure times and peak memory on a device: CUDA events on a GPU, the clock and the resident memory on a CPU."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch


Result = TypeVar("Result")
CPU_PEAK = "CPU, peak resident memory of the process"
CPU_CURRENT = "CPU, resident memory of the process after the measurement"
MPS_CURRENT = "GPU of a Mac, memory allocated by torch after the measurement"
CUDA_PEAK = "GPU, peak memory allocated by torch"


class DeviceClock(Protocol):
    """Times and memory of one device. See [`device_clock`]."""

    memory_kind: str

    def timed(self, function: Callable[[], Result]) -> tuple[Result, float]:
        """
        Run a function until its work on the device is finished.

        Args:
            function (`Callable`): what to measure.

        Returns:
            `tuple`: its result, and its duration in seconds.
        """
        ...

    def synchronize(self) -> None:
        """Wait until the device has no work."""
        ...

    def reset_memory(self) -> None:
        """Start to measure the peak memory."""
        ...

    def peak_memory(self) -> int:
        """
        Get the peak memory.

        Returns:
            `int`: bytes, the largest value since `reset_memory`. `memory_kind` says what is counted.
        """
        ...


class CpuClock:
    """
    Measure on the CPU.

    The peak of the resident memory can only be reset on Linux. Elsewhere, the memory is read once, and `memory_kind`
    says so.

    Args:
        process (`pathlib.Path`, defaults to `/proc/self`): folder with the state of the process.
    """

    def __init__(self, process: Path = Path("/proc/self")) -> None:
        self._process = process
        self.memory_kind = CPU_PEAK
        try:
            self.reset_memory()
        except OSError:
            self.memory_kind = CPU_CURRENT

    def timed(self, function: Callable[[], Result]) -> tuple[Result, float]:
        """See [`DeviceClock.timed`]."""
        start = time.perf_counter()
        result = function()
        return result, time.perf_counter() - start

    def synchronize(self) -> None:
        """A CPU has no work in a queue."""

    def reset_memory(self) -> None:
        """See [`DeviceClock.reset_memory`]."""
        if self.memory_kind == CPU_PEAK:
            # 5 resets the peak of the resident memory, see the manual page proc_pid_clear_refs.
            with open(self._process / "clear_refs", "r+", encoding="ascii") as file:
                file.write("5")

    def peak_memory(self) -> int:
        """See [`DeviceClock.peak_memory`]."""
        if self.memory_kind == CPU_PEAK:
            for line in (self._process / "status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
            raise RuntimeError(f"{self._process / 'status'} has no entry VmHWM; expected the peak resident memory.")
        import psutil  # type: ignore[import-untyped]

        return int(psutil.Process().memory_info().rss)


class CudaClock:
    """
    Measure on a GPU, with CUDA events and the memory that torch allocated.

    Args:
        device (`torch.device`): the GPU.
        cuda (optional): replaces `torch.cuda`.
    """

    memory_kind = CUDA_PEAK

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device, self._cuda = device, cuda

    def timed(self, function: Callable[[], Result]) -> tuple[Result, float]:
        """See [`DeviceClock.timed`]. The time is that between two events in the current stream."""
        with self._cuda.device(self.device):
            start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            self._cuda.synchronize(self.device)  # earlier work is not counted
            start.record()
            result = function()
            end.record()
            self._cuda.synchronize(self.device)  # elapsed_time needs both events
            return result, start.elapsed_time(end) / 1000  # from milliseconds

    def synchronize(self) -> None:
        """See [`DeviceClock.synchronize`]."""
        self._cuda.synchronize(self.device)

    def reset_memory(self) -> None:
        """See [`DeviceClock.reset_memory`]."""
        self._cuda.synchronize(self.device)
        self._cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int:
        """See [`DeviceClock.peak_memory`]."""
        self._cuda.synchronize(self.device)
        return int(self._cuda.max_memory_allocated(self.device))


class MpsClock(CpuClock):
    """
    Measure on the GPU of a Mac: the clock, after waiting for the device, and the memory that torch has allocated.

    Args:
        mps (optional): replaces `torch.mps`.
    """

    def __init__(self, mps: Any = torch.mps) -> None:
        self._mps, self.memory_kind = mps, MPS_CURRENT

    def timed(self, function: Callable[[], Result]) -> tuple[Result, float]:
        """See [`DeviceClock.timed`]."""
        self.synchronize()  # earlier work is not counted

        def whole() -> Result:
            result = function()
            self.synchronize()
            return result

        return super().timed(whole)

    def synchronize(self) -> None:
        """See [`DeviceClock.synchronize`]."""
        self._mps.synchronize()

    def reset_memory(self) -> None:
        """The device does not record a peak."""

    def peak_memory(self) -> int:
        """See [`DeviceClock.peak_memory`]."""
        return int(self._mps.driver_allocated_memory())


def device_clock(device: torch.device | str) -> DeviceClock:
    """
    Get the clock of a device.

    Args:
        device (`torch.device` or `str`): a GPU (`"cuda"`, `"cuda:1"`, `"mps"`) or `"cpu"`.

    Returns:
        [`DeviceClock`]: the clock.

    Raises:
        ValueError: if the device is of another type.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return CudaClock(device)
    if device.type == "cpu":
        return CpuClock()
    if device.type == "mps":
        return MpsClock()
    raise ValueError(f"device is {str(device)!r}; expected 'cuda', 'mps' or 'cpu'.")


__all__ = [
    "CPU_CURRENT",
    "CPU_PEAK",
    "CUDA_PEAK",
    "MPS_CURRENT",
    "CpuClock",
    "CudaClock",
    "DeviceClock",
    "MpsClock",
    "device_clock",
]
