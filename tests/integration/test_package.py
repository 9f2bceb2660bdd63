"""Imports: registration with transformers, and what works without torch or without extras."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vip2clip_hf


def python(code: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=300)


def test_public_names():
    for name in vip2clip_hf.__all__:
        assert hasattr(vip2clip_hf, name)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        vip2clip_hf.absent  # noqa: B018
    assert set(vip2clip_hf.__all__) <= set(dir(vip2clip_hf))


@pytest.mark.slow
def test_importing_registers():
    code = """
import vip2clip_hf
from transformers import AutoConfig, AutoModel
from transformers.models.auto import IMAGE_PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
config = AutoConfig.for_model("vip2clip")
assert type(config) in AutoModel._model_mapping.keys() and type(config) in IMAGE_PROCESSOR_MAPPING
assert "anomaly-detection" in PIPELINE_REGISTRY.supported_tasks
print(type(config).__module__)
"""
    done = python(code)
    assert done.stdout.strip() == "vip2clip_hf.models.vip2clip.configuration_vip2clip", done.stderr[-2000:]


def test_import_needs_base_dependencies_only():
    """The import works without extras and torchvision. Importing twice registers the model once."""
    code = """
import sys
for name in ("datasets", "evaluate", "sklearn", "scipy", "torchvision", "accelerate", "matplotlib",
             "onnx", "onnxruntime", "onnxscript"):
    sys.modules[name] = None
import importlib, warnings
import vip2clip_hf
from transformers import AutoImageProcessor, AutoModel, pipeline
import numpy as np
importlib.reload(vip2clip_hf)
processor = vip2clip_hf.ViP2ClipImageProcessor(size=32)
assert processor(np.zeros((5, 6), np.uint8))["pixel_values"][0].shape == (3, 32, 32)
import vip2clip_hf.cli, vip2clip_hf.export.graph, vip2clip_hf.hub.publishing, vip2clip_hf.plotting.results
# Folders can be indexed and checked without datasets. Converting to a dataset names the missing extra.
import tempfile, vip2clip_hf.data
from vip2clip_hf.data.synthetic import write_dataset
index = vip2clip_hf.data.index_folder(write_dataset(tempfile.mkdtemp(), ("dots",), 1, 1, 16))
assert index.report.total.masks == 4
assert vip2clip_hf.data.check_data(index).problems == {}
try:
    index.to_dataset()
except ImportError as error:
    assert "pip install 'vip2clip_hf[data]'" in str(error)
    print("imported")
"""
    done = python(code)
    assert done.stdout.strip() == "imported", done.stderr[-2000:]
    assert "already registered" not in done.stderr


def test_light_modules_need_neither_torch_nor_transformers():
    code = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
import numpy as np
import vip2clip_hf
from vip2clip_hf.data.synthetic import generate_image
from vip2clip_hf.evaluation import AnomalyMetrics
picture, mask = generate_image("dots", "blob", 32)
metrics = AnomalyMetrics()
metrics.update([0.1, 0.9], [0, 1], np.random.default_rng(0).random((2, 8, 8)), np.eye(8)[None] * [[[0]], [[1]]])
assert metrics.compute()["mean"]["image_auroc"] == 1
import vip2clip_hf.utils.files, vip2clip_hf.utils.figures
try:
    vip2clip_hf.ViP2ClipConfig
except ImportError:
    print(vip2clip_hf.__version__)
"""
    done = python(code)
    assert done.stdout.strip() == vip2clip_hf.__version__, done.stderr[-2000:]


def processor_time() -> float:
    """Return the processor time of finished child processes in seconds, which does not depend on the load of the
    machine. Windows does not count it: return the wall time there."""
    return time.perf_counter() if os.name == "nt" else sum(os.times()[2:4])


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_answers_without_torch(option):
    script = Path(sys.executable).with_name("vip2clip.exe" if os.name == "nt" else "vip2clip")
    if not script.exists():
        pytest.skip("the package is not installed: there is no vip2clip command next to Python")
    times = []
    for _ in range(5):
        start = processor_time()
        done = subprocess.run([script, option], capture_output=True, text=True, timeout=60, check=True)
        times.append(processor_time() - start)
    assert done.stdout
    code = f"""
import sys
sys.argv = ["vip2clip", {option!r}]
import _vip2clip_command
try:
    _vip2clip_command.main()
except SystemExit:
    pass
assert not {{"torch", "transformers", "datasets", "PIL", "numpy"}} & set(sys.modules), sorted(sys.modules)
"""
    checked = python(code)
    assert checked.returncode == 0, checked.stderr[-2000:]
    assert min(times) < 0.5, times


@pytest.mark.slow
def test_the_command_registers_when_it_needs_the_model():
    code = """
import sys
import _vip2clip_command, vip2clip_hf
assert "torch" not in sys.modules
vip2clip_hf.AnomalyDetectionPipeline
from transformers.pipelines import PIPELINE_REGISTRY
assert "anomaly-detection" in PIPELINE_REGISTRY.supported_tasks
print("registered")
"""
    done = python(code)
    assert done.stdout.strip() == "registered", done.stderr[-2000:]
