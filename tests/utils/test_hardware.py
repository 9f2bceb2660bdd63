import os

import pytest
import torch

from vip2clip_hf.utils import hardware


@pytest.mark.parametrize(
    ("text", "name"),
    [("processor\t: 0\nmodel name\t: AMD EPYC 9 : 64-Core\n", "AMD EPYC 9 : 64-Core"), ("model name\t:\n", None)],
)
def test_cpu_model(text, name, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(hardware, "_CPU_INFO", path)
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "riscv")
    assert hardware.cpu_model() == (name or "riscv")
    path.unlink()
    assert hardware.cpu_model() == "riscv"


def test_describe_hardware(monkeypatch):
    found = hardware.describe_hardware("cpu")
    assert found == {
        "device": "cpu", "name": hardware.cpu_model(), "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA {device.index}")
    found = hardware.describe_hardware(torch.device("cuda:1"))
    assert (found["device"], found["name"]) == ("cuda", "NVIDIA 1")
