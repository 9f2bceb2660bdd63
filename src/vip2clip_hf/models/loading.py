"""Load a checkpoint for a run over many images, on one process or several, and identify it in results."""

import hashlib
import json
import os
from datetime import timedelta
from pathlib import Path

import torch

from ..utils.extras import extra
from .vip2clip.backbone_vip2clip import check_device
from .vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from .vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


DTYPES = ("float32", "bfloat16", "float16")
# Processes that are done wait for the slowest one, which may be on another machine.
TIMEOUT = timedelta(days=7)


def check_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """
    Raises:
        ValueError: a name that is none of a precision.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected {', '.join(DTYPES)}.")
    return getattr(torch, dtype)


def load_checkpoint(
    checkpoint: str | os.PathLike,
    *,
    device: str | None = None,
    dtype: torch.dtype | str = "float32",
    backbone: str | os.PathLike | None = None,
) -> tuple[ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor]:
    """
    Model and image processor, the model where this process runs it. Under `accelerate launch` or `torchrun` the
    processes find each other.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder or Hub id.
        device (`str`, *optional*):
            Where to run; an accelerator, when not given and there is one.
        dtype (`torch.dtype` or `str`, defaults to `"float32"`):
            Precision of the model.
        backbone (`str` or `os.PathLike`, *optional*):
            For a checkpoint of adapters only: its CLIP, where it is not the one it names.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: a device that is not there, or an unknown precision.
        OSError, ValueError, RuntimeError: see the model's `from_pretrained`.
    """
    with extra("data", "Running a checkpoint over many images"):
        from accelerate import PartialState

    dtype = check_dtype(dtype)
    check_device(device)
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint, dtype=dtype, backbone=backbone)
    image_processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
    check_image_processor(image_processor, model.config.image_size)
    model.to(state.device if device is None or state.num_processes > 1 else device)
    _align(model)
    return model, image_processor


def _align(model: torch.nn.Module):
    """On CPUs sums can round by where weights lie in memory, and a file that is mapped puts them anywhere. All of them
    at multiples of 64 bytes, as torch allocates, so that every process computes the same bits."""
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and weight.data_ptr() % 64:
            weight.data = weight.data.clone()


def name_of(checkpoint: str | os.PathLike) -> str:
    """What a checkpoint is called where nothing is said: its folder, without the way to it, or its Hub id."""
    path = Path(checkpoint)
    return path.resolve().name if path.exists() else str(checkpoint)


def model_checksum(model: ViP2ClipForAnomalyDetection) -> str:
    """Of adapters, the projections of the backbone and the configuration: another model has another one."""
    digest = hashlib.sha256()
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version", "architectures", "dtype"):
        config.pop(key, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    weights = {**model.adapter_state_dict(), "projection": model.clip.visual_projection.weight}
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return f"{digest.hexdigest()[:16]} {model.dtype}"


__all__ = ["DTYPES", "check_dtype", "load_checkpoint", "model_checksum", "name_of"]
