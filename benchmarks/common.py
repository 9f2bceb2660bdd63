"""Shared by several benchmarks: timing, models, and the speed of the hardware."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection


def median_time(function: Callable[[], object], repeats: int) -> float:
    """Return the median duration of a call in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# Settings of a model on ViT-Tiny/16.
TINY: dict[str, Any] = {"variant": "release", "image_size": 320, "feature_layers": (3, 6, 9, 12), "top_k": 15}


def new_model(clip: str | None, seed: int = 0, **options: Any) -> ViP2ClipForAnomalyDetection:
    """Create a model with new adapters, on a CLIP checkpoint or on a CLIP of the size of ViT-L/14 with random
    weights. The options are fields of the configuration of the latter."""
    torch.manual_seed(seed)
    if clip is None:
        return ViP2ClipForAnomalyDetection(ViP2ClipConfig(**options))
    return ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """Measure the floating point operations per second of a large matrix product, best of five."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ b).sum().item()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def vision_operations(config: ViP2ClipConfig) -> float:
    """Return the number of floating point operations of the vision tower for one image."""
    vision = config.clip_vision_config
    tokens, width = config.patch_grid**2 + 1, vision.hidden_size
    block = 4 * width**2 + 2 * width * vision.intermediate_size  # multiplications per token with the weights
    return vision.num_hidden_layers * (2 * tokens * block + 4 * tokens**2 * width)
