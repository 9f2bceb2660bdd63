"""Times and memory of a device. CUDA is replaced by a recorder, so the order of its calls is tested without a GPU."""

import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from vip2clip_hf.utils.device_clock import (
    CPU_CURRENT,
    CPU_PEAK,
    MPS_CURRENT,
    CpuClock,
    CudaClock,
    MpsClock,
    device_clock,
)


class FakeCuda:
    """Records calls. Each event gets the time of a clock that `work` advances when the device is synchronized."""

    def __init__(self):
        self.calls, self.now, self.pending = [], 0.0, 0.0

    def work(self, milliseconds):
        self.calls.append("work")
        self.pending += milliseconds

    @contextmanager
    def device(self, device):
        self.calls.append(f"enter {device}")
        yield
        self.calls.append("leave")

    def synchronize(self, device):
        self.calls.append("synchronize")

    def reset_peak_memory_stats(self, device):
        self.calls.append("reset")

    def max_memory_allocated(self, device):
        self.calls.append("peak")
        return 1234

    def Event(self, enable_timing):
        assert enable_timing
        cuda = self

        class Event:
            def record(self):
                cuda.calls.append("record")
                cuda.now, cuda.pending = cuda.now + cuda.pending, 0.0
                self.time, self.place = cuda.now, len(cuda.calls)

            def elapsed_time(self, other):
                assert "synchronize" in cuda.calls[other.place :], "the end event has not been reached"
                return other.time - self.time

        return Event()


def test_cuda_times_are_between_events():
    cuda = FakeCuda()
    clock = CudaClock(torch.device("cuda:1"), cuda)
    cuda.work(70)  # in the queue before: not counted
    result, seconds = clock.timed(lambda: cuda.work(250) or "done")
    assert (result, seconds) == ("done", 0.25)
    order = ["work", "enter cuda:1", "synchronize", "record", "work", "record", "synchronize", "leave"]
    assert cuda.calls == order


def test_cuda_memory():
    cuda = FakeCuda()
    clock = CudaClock(torch.device("cuda"), cuda)
    clock.reset_memory()
    assert clock.peak_memory() == 1234
    clock.synchronize()
    assert cuda.calls == ["synchronize", "reset", "synchronize", "peak", "synchronize"]
    assert clock.memory_kind.startswith("GPU")


def test_cpu():
    clock = device_clock("cpu")
    assert clock.memory_kind == CPU_PEAK
    result, seconds = clock.timed(lambda: time.sleep(0.02) or 3)
    assert result == 3
    assert 0.02 <= seconds < 1
    clock.reset_memory()
    before = clock.peak_memory()
    np.ones(2**25)  # 256 MB, freed at once
    assert clock.peak_memory() - before > 2e8
    clock.reset_memory()
    assert clock.peak_memory() - before < 1e8


def test_cpu_without_a_peak(tmp_path):
    clock = CpuClock(tmp_path)  # as on other systems: no clear_refs
    assert clock.memory_kind == CPU_CURRENT
    clock.reset_memory()
    assert clock.peak_memory() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "clear_refs").touch()
    (tmp_path / "status").write_text("Name:\tpython\n")
    with pytest.raises(RuntimeError, match="has no entry VmHWM"):
        CpuClock(tmp_path).peak_memory()


def test_mps():
    calls = []
    mps = SimpleNamespace(synchronize=lambda: calls.append("synchronize"), driver_allocated_memory=lambda: 77)
    clock = MpsClock(mps)
    result, seconds = clock.timed(lambda: calls.append("run") or time.sleep(0.01) or 3)
    assert (result, calls) == (3, ["synchronize", "run", "synchronize"])
    assert 0.01 <= seconds < 1
    clock.reset_memory()
    assert clock.peak_memory() == 77
    assert clock.memory_kind == MPS_CURRENT
    assert isinstance(device_clock("mps"), MpsClock)


def test_unknown_device():
    with pytest.raises(ValueError, match="device is 'meta'; expected 'cuda', 'mps' or 'cpu'"):
        device_clock("meta")
    assert isinstance(device_clock("cuda:3"), CudaClock)
