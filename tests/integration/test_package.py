import subprocess
import sys

import vip2clip_hf


def test_public_names():
    for name in vip2clip_hf.__all__:
        assert hasattr(vip2clip_hf, name)


def test_import_needs_base_dependencies_only():
    """Neither extras nor torchvision, and importing twice registers once."""
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
# Folders are read and checked without the library datasets; a data set says what is missing.
import tempfile, vip2clip_hf.data
from vip2clip_hf.data.synthetic.dataset import write_dataset
index = vip2clip_hf.data.index_folder(write_dataset(tempfile.mkdtemp(), ("dots",), 1, 1, 16))
assert index.report.total.masks == 4
assert vip2clip_hf.data.check_data(index).problems == {}
try:
    index.to_dataset()
except ImportError as error:
    assert "pip install 'vip2clip_hf[data]'" in str(error)
    print("imported")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "imported", done.stderr[-2000:]
    assert "already registered" not in done.stderr
