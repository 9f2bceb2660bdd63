"""Stages of a forward pass, compared with a textbook implementation. Also precisions and peak memory."""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vip2clip_hf import ViP2ClipForAnomalyDetection

from .common import matrix_rate, new_model, vision_operations
from .memory import CudaMemory, ProcessMemory
from .textbook import Textbook


STAGES = ("vision", "prompts", "alignment", "map")


def run_stages(
    model: ViP2ClipForAnomalyDetection | Textbook, pixel_values: torch.Tensor
) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """Return the duration of each stage in seconds, the scores (B,) and the anomaly maps (B, S, S)."""
    times = []

    def timed(function: Callable[..., Any], *inputs: Any) -> Any:
        start = time.perf_counter()
        output = function(*inputs)
        if pixel_values.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        return output

    images = timed(model.get_image_features, pixel_values)
    prompts = timed(model.get_prompt_features, images.image_embeds)
    image_embeds, patch_embeds, text_embeds = images.image_embeds, images.patch_embeds, prompts.text_embeds
    if isinstance(model, Textbook):
        scores, layer_maps = timed(model.align, text_embeds, patch_embeds)
    else:
        aligned = timed(lambda: model.align(text_embeds, patch_embeds, image_embeds, normalized=True))
        scores, layer_maps = aligned.scores, aligned.layer_maps
    return times, scores.cpu(), timed(model.get_anomaly_maps, layer_maps).cpu()


def inference_model(options: argparse.Namespace) -> ViP2ClipForAnomalyDetection:
    """Load the model to measure, on the GPU if there is one."""
    if options.model is None:
        model = new_model(None)
    else:
        model = ViP2ClipForAnomalyDetection.from_pretrained(options.model)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def stage_medians(runs: list[list[float]]) -> list[float]:
    """Return the median duration of each stage in milliseconds."""
    return [1000 * statistics.median(times) for times in zip(*runs)]


@torch.inference_mode()
def benchmark_inference(options: argparse.Namespace) -> None:
    """Measure the stages of a forward pass, precisions, ways to run the vision tower, and peak memory."""
    model = inference_model(options)
    config, device = model.config, model.device
    size, needed = config.image_size, vision_operations(config)
    print(f"{options.model or 'random weights at the size of CLIP ViT-L/14'}, {size} pixels, {device}")
    for batch_size in options.batch_sizes:
        pixels = torch.randn(batch_size, 3, size, size, device=device)
        candidates: dict[str, ViP2ClipForAnomalyDetection | Textbook] = {"ours": model, "textbook": Textbook(model)}
        runs: dict[str, list[list[float]]] = {name: [] for name in candidates}
        outputs = {}
        for repeat in range(options.repeats + 1):  # the first repeat is a warm-up
            for name, candidate in candidates.items():
                times, *outputs[name] = run_stages(candidate, pixels)
                if repeat:
                    runs[name].append(times)
        ours, theirs = (stage_medians(runs[name]) for name in candidates)
        print(f"batch {batch_size}, float32, medians of {options.repeats} repeats      ours       textbook")
        for stage, mine, other in zip(STAGES, ours, theirs):
            print(f"  {stage:34s} {mine:10.1f} ms {other:10.1f} ms   {other / mine:5.1f} times as long")
        for name, times in (("ours", ours), ("textbook", theirs)):
            outside = sum(times[1:])
            print(f"  {name}: {outside:.1f} ms outside the vision tower, {outside / times[0]:.2%} of its time")
        rate = needed * batch_size / ours[0] * 1000
        share = rate / matrix_rate(device, torch.float32)
        print(f"  vision tower: {needed / 1e12:.3f} TFLOP per image, {share:.0%} of the speed of a matrix product")
        differences = [(mine - other).abs().max().item() for mine, other in zip(outputs["ours"], outputs["textbook"])]
        print(f"  maximum difference: scores {differences[0]:.1e}, maps {differences[1]:.1e}")
        _compare_precisions(model, pixels, options)
        _compare_towers(model, pixels, options)
    for dtype in ("float32", *options.dtypes):
        command = [sys.executable, "-m", "benchmarks", "forward", "--dtype", dtype]
        command += ["--model", options.model] if options.model else []
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        memory = json.loads(output)
        weights, beyond = memory["weights"], memory["peak"]
        print(f"  peak memory, batch 1, {dtype}: {weights:.0f} MB of weights, and {beyond:.0f} MB in addition")


def _compare_precisions(model: ViP2ClipForAnomalyDetection, pixels: torch.Tensor, options: argparse.Namespace) -> None:
    """Compare the speed and the results of other precisions with float32."""
    models = {"float32": model}
    for dtype in options.dtypes:
        models[dtype] = copy.deepcopy(model).to(getattr(torch, dtype))
    runs: dict[str, list[float]] = {name: [] for name in models}
    outputs = {}
    for repeat in range(options.repeats + 1 if options.dtypes else 0):
        for name, candidate in models.items():
            times, *outputs[name] = run_stages(candidate, pixels.to(candidate.dtype))
            if repeat:
                runs[name].append(sum(times))
    for name in options.dtypes:
        whole, reduced = (1000 * statistics.median(runs[dtype]) for dtype in ("float32", name))
        differences = [(a - b).abs().max().item() for a, b in zip(outputs[name], outputs["float32"])]
        print(
            f"  {name}: {reduced:.1f} ms, float32 {whole:.1f} ms, {whole / reduced:.2f} times as fast; "
            f"maximum difference: scores {differences[0]:.1e}, maps {differences[1]:.1e}"
        )


def _compare_towers(model: ViP2ClipForAnomalyDetection, pixels: torch.Tensor, options: argparse.Namespace) -> None:
    """Compare the speed of other ways to run the vision tower, interleaved."""
    towers: dict[str, tuple[Callable[[torch.Tensor], Any], torch.Tensor]] = {
        "sdpa": (model.get_image_features, pixels)
    }
    if "eager" in options.towers:
        eager = copy.deepcopy(model)
        eager.set_attn_implementation("eager")
        towers["eager"] = (eager.get_image_features, pixels)
    if "channels_last" in options.towers:
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        towers["channels_last"] = (last.get_image_features, pixels.to(memory_format=torch.channels_last))
    if "compile" in options.towers:
        towers["compile"] = (torch.compile(model.get_image_features, fullgraph=True), pixels)
    runs: dict[str, list[float]] = {name: [] for name in towers}
    for repeat in range(options.repeats + 1 if len(towers) > 1 else 0):
        for name, (tower, inputs) in towers.items():
            start = time.perf_counter()
            tower(inputs)[1].sum().item()
            if repeat:
                runs[name].append(time.perf_counter() - start)
    default = statistics.median(runs["sdpa"]) if len(towers) > 1 else 0
    for name in options.towers:
        other = statistics.median(runs[name])
        print(
            f"  vision tower, {name}: {1000 * other:.1f} ms, sdpa {1000 * default:.1f} ms, "
            f"{default / other:.2f} times as fast"
        )


@torch.inference_mode()
def benchmark_forward(options: argparse.Namespace) -> None:
    """Measure the peak memory of forward passes of one image, in this process."""
    dtype = getattr(torch, options.dtype)
    model = inference_model(options).to(dtype)
    size, device = model.config.image_size, model.device
    pixels = torch.randn(1, 3, size, size, device=device, dtype=dtype)
    if device.type == "cpu":
        # Reset the peak, because building the model takes more memory than the model.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    memory = CudaMemory() if device.type == "cuda" else ProcessMemory()
    for _ in range(2):
        model(pixels)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(json.dumps({"weights": weights / 2**20, "peak": memory.peak() / 2**20}))
