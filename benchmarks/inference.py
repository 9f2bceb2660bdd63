"""The stages of a forward pass, against a textbook implementation; other precisions; peak memory."""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from vip2clip_hf import ViP2ClipForAnomalyDetection

from .common import matrix_rate, new_model, vision_operations
from .memory import CudaMemory, ProcessMemory
from .textbook import Textbook


STAGES = ("vision", "prompts", "alignment", "map")


def run_stages(model, pixel_values: torch.Tensor) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """Seconds of every stage, scores and maps."""
    times = []

    def timed(function, *inputs):
        start = time.perf_counter()
        output = function(*inputs)
        if pixel_values.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        return output

    image_embeds, patch_embeds = timed(model.get_vision_features, pixel_values)
    text_embeds = timed(model.get_prompt_embeds, image_embeds)
    if isinstance(model, Textbook):
        scores, layer_maps = timed(model.align, text_embeds, patch_embeds)
    else:
        aligned = timed(lambda: model.align(text_embeds, patch_embeds, image_embeds, normalized=True))
        scores, layer_maps = aligned.scores, aligned.layer_maps
    return times, scores.cpu(), timed(model.get_anomaly_maps, layer_maps).cpu()


def inference_model(options: argparse.Namespace) -> ViP2ClipForAnomalyDetection:
    if options.model is None:
        model = new_model(None)
    else:
        model = ViP2ClipForAnomalyDetection.from_pretrained(options.model)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def stage_medians(runs: list[list[float]]) -> list[float]:
    return [1000 * statistics.median(times) for times in zip(*runs)]


@torch.inference_mode()
def benchmark_inference(options: argparse.Namespace):
    """The stages of a forward, against a textbook implementation; other precisions; peak memory."""
    model = inference_model(options)
    config, device = model.config, model.device
    size, needed = config.image_size, vision_operations(config)
    print(f"{options.model or 'random weights of the size of CLIP ViT-L/14'}, {size} pixels, {device}")
    for batch_size in options.batch_sizes:
        pixels = torch.randn(batch_size, 3, size, size, device=device)
        candidates = {"ours": model, "textbook": Textbook(model)}
        runs: dict[str, list[list[float]]] = {name: [] for name in candidates}
        found = {}
        for repeat in range(options.repeats + 1):  # the first warms up
            for name, candidate in candidates.items():
                times, *found[name] = run_stages(candidate, pixels)
                if repeat:
                    runs[name].append(times)
        ours, theirs = (stage_medians(runs[name]) for name in candidates)
        print(f"batch {batch_size}, float32, medians of {options.repeats}, interleaved      ours       textbook")
        for stage, mine, other in zip(STAGES, ours, theirs):
            print(f"  {stage:34s} {mine:10.1f} ms {other:10.1f} ms   {other / mine:5.1f} times")
        for name, times in (("ours", ours), ("textbook", theirs)):
            outside = sum(times[1:])
            print(f"  {name}: outside the vision tower {outside:.1f} ms, {outside / times[0]:.2%} of it")
        rate = needed * batch_size / ours[0] * 1000
        share = rate / matrix_rate(device, torch.float32)
        print(f"  vision tower: {needed / 1e12:.3f} TFLOP an image, {share:.0%} of the rate of a matrix product")
        apart = [(mine - other).abs().max().item() for mine, other in zip(found["ours"], found["textbook"])]
        print(f"  apart: scores {apart[0]:.1e}, maps {apart[1]:.1e}")
        _compare_precisions(model, pixels, options)
        _compare_towers(model, pixels, options)
    for dtype in ("float32", *options.dtypes):
        command = [sys.executable, "-m", "benchmarks", "forward", "--dtype", dtype]
        command += ["--model", options.model] if options.model else []
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        memory = json.loads(output)
        weights, beyond = memory["weights"], memory["peak"]
        print(f"  peak memory, batch 1, {dtype}: weights {weights:.0f} MB and {beyond:.0f} MB beyond them")


def _compare_precisions(model, pixels: torch.Tensor, options: argparse.Namespace):
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
        whole, reduced = (1000 * statistics.median(runs[one]) for one in ("float32", name))
        apart = [(one - two).abs().max().item() for one, two in zip(outputs[name], outputs["float32"])]
        print(
            f"  {name}: {reduced:.1f} ms, float32 {whole:.1f} ms, {whole / reduced:.2f} times as fast; "
            f"apart: scores {apart[0]:.1e}, maps {apart[1]:.1e}"
        )


def _compare_towers(model, pixels: torch.Tensor, options: argparse.Namespace):
    """Ways to run the vision tower, interleaved."""
    towers = {"sdpa": (model.get_vision_features, pixels)}
    if "eager" in options.towers:
        eager = copy.deepcopy(model)
        eager.set_attn_implementation("eager")
        towers["eager"] = (eager.get_vision_features, pixels)
    if "channels_last" in options.towers:
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        towers["channels_last"] = (last.get_vision_features, pixels.to(memory_format=torch.channels_last))
    if "compile" in options.towers:
        towers["compile"] = (torch.compile(model.get_vision_features, fullgraph=True), pixels)
    runs: dict[str, list[float]] = {name: [] for name in towers}
    for repeat in range(options.repeats + 1 if len(towers) > 1 else 0):
        for name, (tower, inputs) in towers.items():
            start = time.perf_counter()
            tower(inputs)[1].sum().item()
            if repeat:
                runs[name].append(time.perf_counter() - start)
    usual = statistics.median(runs["sdpa"]) if len(towers) > 1 else 0
    for name in options.towers:
        found = statistics.median(runs[name])
        print(f"  vision tower, {name}: {1000 * found:.1f} ms, sdpa {1000 * usual:.1f} ms, {usual / found:.2f} times")


@torch.inference_mode()
def benchmark_forward(options: argparse.Namespace):
    """Peak memory of forwards of one image, in a process of its own."""
    dtype = getattr(torch, options.dtype)
    model = inference_model(options).to(dtype)
    size, device = model.config.image_size, model.device
    pixels = torch.randn(1, 3, size, size, device=device, dtype=dtype)
    if device.type == "cpu":
        # Building the model took more than it holds: the peak of this process is counted from here on.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    memory = CudaMemory() if device.type == "cuda" else ProcessMemory()
    for _ in range(2):
        model(pixels)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(json.dumps({"weights": weights / 2**20, "peak": memory.peak() / 2**20}))
