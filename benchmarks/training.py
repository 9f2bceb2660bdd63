"""Training with the feature cache, compared with training without it."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.trainer import ViP2ClipTrainer

from .common import matrix_rate, new_model, vision_operations
from .memory import CudaMemory, ProcessMemory


def time_training(
    model: ViP2ClipForAnomalyDetection, root: Path, folder: Path, epochs: int, cache: Path | None, bf16: bool
) -> tuple[float, float]:
    """Return the duration of the cache pass and of training, in seconds."""
    arguments = ViP2ClipTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        cache_features=None if cache is None else str(cache),
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        bf16=bf16,
    )
    processor = ViP2ClipImageProcessor(size=model.config.image_size)
    trainer = ViP2ClipTrainer(model, arguments, processor, load_folder(root))
    start = time.perf_counter()
    if cache is not None:
        trainer.cache_features()
    cache_seconds = time.perf_counter() - start
    start = time.perf_counter()
    trainer.train()
    return cache_seconds, time.perf_counter() - start


def benchmark_training(options: argparse.Namespace) -> None:
    """Measure training with and without the feature cache, interleaved."""
    datasets.disable_progress_bars()
    model = new_model(options.clip)
    config = model.config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    # At the size of ViT-L/14, one epoch without the cache is measured and multiplied by the number of epochs.
    measured = options.epochs if options.clip else 1
    with tempfile.TemporaryDirectory() as folder:
        per_kind = max(1, options.images // 5)
        root = write_dataset(Path(folder, "data"), ("weave",), options.images - 4 * per_kind, per_kind, 256)
        count = len(load_folder(root))
        name = options.clip or "random weights at the size of CLIP ViT-L/14"
        print(
            f"{name}, {config.image_size} pixels, {device}, {str(dtype)[6:]}, {count} images, {options.epochs} epochs"
        )
        passes, cached, plain = [], [], []
        for repeat in range(options.repeats):
            _, seconds = time_training(model, root, Path(folder, "run"), measured, None, options.bf16)
            plain.append(seconds * options.epochs / measured)
            parts = time_training(
                model, root, Path(folder, "run"), options.epochs, Path(folder, f"cache{repeat}"), options.bf16
            )
            passes.append(parts[0])
            cached.append(sum(parts))
        rate, needed = count / statistics.median(passes), vision_operations(config)
    plain_time, cached_time = statistics.median(plain), statistics.median(cached)
    note = "" if measured == options.epochs else f", extrapolated from {measured} epoch"
    print(f"  without cache {plain_time:8.1f} s{note}")
    print(f"  with cache    {cached_time:8.1f} s, including {statistics.median(passes):.1f} s for the cache pass")
    print(f"  {plain_time / cached_time:.1f} times as fast (medians of {options.repeats} repeats, interleaved)")
    share = rate * needed / matrix_rate(torch.device(device), dtype)
    work = f"{needed / 1e12:.3f} TFLOP per image"
    print(f"  cache pass: {rate:.2f} images/s, {share:.0%} of the speed of a matrix product ({work})")
    command = [sys.executable, "-m", "benchmarks", "step", *(["--clip", options.clip] if options.clip else [])]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    result = json.loads(output)
    seconds, peak = result["seconds"], result["peak"]
    print(
        f"  training step of 8 images with the cache: {seconds:.2f} s, "
        f"{peak:.0f} MB of peak memory in addition to the weights"
    )


def benchmark_step(options: argparse.Namespace) -> None:
    """Measure the time and the peak memory of a training step with the cache and Adam, in this process."""
    model = new_model(options.clip).train()
    config = model.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    layers, patches, width = len(config.feature_layers), config.patch_grid**2, config.clip_projection_dim
    batch = {
        "image_embeds": torch.randn(8, width, device=device),
        "patch_embeds": torch.randn(8, layers, patches, width, device=device),
        "labels": torch.tensor([0, 1] * 4, device=device),
        "mask_labels": torch.zeros(8, config.image_size, config.image_size, dtype=torch.uint8, device=device),
        "mask_valid": torch.ones(8, dtype=torch.bool, device=device),
    }
    batch["mask_labels"][1::2, 50:150, 50:90] = 1
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    memory = CudaMemory() if device.type == "cuda" else ProcessMemory()
    times = []
    for _ in range(4):
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        batch["labels"].cpu()
        times.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(times[1:]), "peak": memory.peak() / 2**20}))
