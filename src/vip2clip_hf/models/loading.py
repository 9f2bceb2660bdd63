"""Load a checkpoint to process many images, in one or more processes, and identify it in results."""

import hashlib
import json
import os
from datetime import timedelta
from typing import Any

import torch

from ..utils.extras import extra
from .vip2clip.backbone_vip2clip import check_device
from .vip2clip.fingerprint_vip2clip import FIELDS
from .vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from .vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


DTYPES = ("float32", "bfloat16", "float16")
# Processes that finish first wait for the slowest one, which can be on another machine.
TIMEOUT = timedelta(days=7)


def check_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """
    Convert the name of a dtype to a `torch.dtype`.

    Args:
        dtype (`torch.dtype` or `str`): dtype, or one of `"float32"`, `"bfloat16"` and `"float16"`.

    Returns:
        `torch.dtype`: the dtype.

    Raises:
        ValueError: if the name is unknown.
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
    Load model and image processor of a checkpoint, and move the model to the device of this process.

    Under `accelerate launch` or `torchrun`, this also sets up communication between the processes.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder or Hub id.
        device (`str`, *optional*):
            Device of the model. By default, an accelerator if available, otherwise the CPU. With several processes,
            only `"cpu"` has an effect.
        dtype (`torch.dtype` or `str`, defaults to `"float32"`):
            Dtype of the model.
        backbone (`str` or `os.PathLike`, *optional*):
            Folder or Hub id of the CLIP backbone, for an adapters-only checkpoint. By default, the `backbone_id` of
            the checkpoint.

    Returns:
        `tuple`: [`ViP2ClipForAnomalyDetection`] in eval mode, and [`ViP2ClipImageProcessor`].

    Raises:
        ImportError: if accelerate is not installed.
        OSError: if checkpoint or backbone are not found.
        RuntimeError: if weights are missing.
        ValueError: if device or dtype are invalid, the checkpoint belongs to another model type, its backbone is not
            the one used in training, or its image processor does not match the model.
    """
    dtype = check_dtype(dtype)
    target = device_of_process(device)
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint, dtype=dtype, backbone=backbone)
    image_processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
    check_image_processor(image_processor, model.config.image_size)
    place_model(model, target)
    return model, image_processor


def device_of_process(device: str | None) -> torch.device | str:
    """
    Choose the device of this process. Under `accelerate launch` or `torchrun`, this also sets up communication.

    Args:
        device (`str`, *optional*): see [`load_checkpoint`].

    Returns:
        `torch.device` or `str`: the device.

    Raises:
        ImportError: if accelerate is not installed.
        ValueError: if the device is invalid.
    """
    with extra("data", "Running a checkpoint over many images"):
        from accelerate import PartialState

    check_device(device)
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    return state.device if device is None or state.num_processes > 1 else device


def place_model(model: torch.nn.Module, device: torch.device | str) -> None:
    """
    Move a model to the device to run on.

    Args:
        model (`torch.nn.Module`): the model.
        device (`torch.device` or `str`): the device.
    """
    model.to(device)
    _align(model)


def _align(model: torch.nn.Module) -> None:
    """
    Align CPU weights to 64 bytes, like tensors allocated by torch.

    Rounding on CPUs can depend on memory alignment, and weights in a memory-mapped file have any alignment. With
    aligned weights, all processes compute identical results.
    """
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and weight.data_ptr() % 64:
            weight.data = weight.data.clone()


def check_model(model: object) -> None:
    """
    Check that a model is one of this package, and not wrapped or another one.

    Args:
        model (`object`): the model.

    Raises:
        ValueError: if the model has no configuration, decision or provenance.
    """
    if not all(hasattr(model, name) for name in ("config", "decision", "provenance")):
        hint = "Pass model.module." if isinstance(getattr(model, "module", None), torch.nn.Module) else ""
        raise ValueError(
            f"model is a {type(model).__name__}; expected a ViP2ClipForAnomalyDetection. "
            f"{hint or 'Evaluate other models with evaluate_model.'}"
        )


def model_checksum(model: ViP2ClipForAnomalyDetection) -> str:
    """
    Compute a checksum of everything in a model that determines scores and anomaly maps.

    Thresholds and the names of labels do not count. All weights are read, which takes about a second per gigabyte.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.

    Returns:
        `str`: 16 hexadecimal digits computed from weights, types of modules and configuration, and the dtype of CLIP.

    Raises:
        RuntimeError: if weights are offloaded or on another process, so the model cannot be identified.
    """
    clip = {
        name: {key: value for key, value in part.to_dict().items() if key not in ("dtype", "transformers_version")}
        for name, part in (("vision", model.config.clip_vision_config), ("text", model.config.clip_text_config))
    }
    fields = {name: getattr(model.config, name) for name in (*FIELDS, "top_k")}
    content = json.dumps([fields, clip, weights_digest(model)], sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode())
    return f"{digest.hexdigest()[:16]} {str(model.clip.dtype).removeprefix('torch.')}"


@torch.no_grad()
def weights_digest(model: torch.nn.Module) -> str:
    """
    Hash all weights, and the types of modules: a wrapped or quantized module computes something else.

    Args:
        model (`torch.nn.Module`): the model, or a part of it.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        RuntimeError: if weights are offloaded or on another process.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__name__}\n".encode())
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            digest.update(f"{name} {value!r}\n".encode())
            continue
        if value.is_meta or hasattr(value, "full_tensor"):
            raise RuntimeError(
                "Weights of the model are offloaded or on another process, so results cannot be matched to the "
                "model; expected a model that is loaded completely, without offloading in device_map."
            )
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            value = value.dequantize()  # a quantized tensor of another library
        # NumPy has no bfloat16.
        digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def processor_settings(image_processor: ViP2ClipImageProcessor) -> dict[str, Any]:
    """
    Describe how an image processor changes images, to identify it in results.

    Args:
        image_processor ([`ViP2ClipImageProcessor`]): the image processor.

    Returns:
        `dict[str, Any]`: its settings as JSON types, without the fields that only describe the class.
    """
    settings = json.loads(image_processor.to_json_string())
    return {key: value for key, value in settings.items() if key not in ("auto_map", "image_processor_type")}


__all__ = [
    "DTYPES",
    "check_dtype",
    "check_model",
    "device_of_process",
    "load_checkpoint",
    "model_checksum",
    "place_model",
    "processor_settings",
    "weights_digest",
]
