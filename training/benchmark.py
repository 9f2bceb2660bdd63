"""Measurements, each against another way to do the same in the same run.

python training/benchmark.py data
python training/benchmark.py metrics
python training/benchmark.py training [--clip CLIP]
python training/benchmark.py inference [--model CHECKPOINT]
"""

import argparse
import copy
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data import index_folder, load_folder
from vip2clip_hf.data.synthetic import write_dataset
from vip2clip_hf.maps_vip2clip import resize_maps
from vip2clip_hf.metrics import AnomalyMetrics
from vip2clip_hf.trainer import ViP2ClipTrainer, ViP2ClipTrainingArguments


def median_time(function: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_tree(root: Path, num_images: int, num_categories: int = 10):
    """A tree like that of MVTec AD with masks; all pictures are the same."""
    root.mkdir()
    picture = root / "picture.png"
    Image.new("L", (8, 8), 255).save(picture)
    per_kind = num_images // (2 * num_categories)
    for category in range(num_categories):
        for folder, suffix in (("test/good", ""), ("test/bad", ""), ("ground_truth/bad", "_mask")):
            target = root / f"category{category}" / folder
            target.mkdir(parents=True)
            for number in range(per_kind):
                shutil.copyfile(picture, target / f"{number:03d}{suffix}.png")
    picture.unlink()


def benchmark_data(options: argparse.Namespace):
    """Indexing of a folder, against `imagefolder` of datasets, which knows neither masks nor categories."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "data")
        write_tree(root, options.images)
        count = len(load_folder(root))
        print(f"{count} images and {count // 2} masks in 10 categories, {options.repeats} repeats, medians")
        ours = median_time(lambda: load_folder(root), options.repeats)
        report = median_time(lambda: index_folder(root).report, options.repeats)

        def imagefolder():
            cache = tempfile.mkdtemp(dir=folder)
            datasets.load_dataset("imagefolder", data_dir=str(root), split="test", cache_dir=cache)

        theirs = median_time(imagefolder, options.repeats)
        print(f"  load_folder                    {ours:8.3f} s")
        print(f"  index_folder(...).report       {report:8.3f} s")
        print(f"  datasets imagefolder           {theirs:8.3f} s   {theirs / ours:.0f} times load_folder")


def generate_maps(count: int, side: int, batch_size: int = 8) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of maps as a model makes them, from a grid of patches, and of masks; some 40 % are anomalous."""
    rng = np.random.default_rng(0)
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        masks = np.zeros((size, side, side), dtype=bool)
        for mask in masks:
            for _ in range(rng.integers(1, 4) if rng.random() < 0.4 else 0):
                y, x = rng.integers(0, side - side // 8, size=2)
                height, width = rng.integers(side // 40, side // 8, size=2)
                mask[y : y + height, x : x + width] = True
        grid = side // 14
        marked = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks).float(), grid)
        logits = torch.from_numpy(rng.standard_normal((size, grid, grid)).astype(np.float32)) + 3 * marked - 1.5
        yield resize_maps(logits.sigmoid(), side, sigma=8.0).numpy(), masks


def textbook_metrics(
    maps: np.ndarray, masks: np.ndarray, steps: int = 200, fpr_limit: float = 0.3
) -> dict[str, float]:
    """Pixel metrics as the codes of this field compute them: scikit-learn on all pixels, and for AUPRO a loop over
    thresholds, masks and regions."""
    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / (precision + recall + 1e-8)
    low, high = maps.min(), maps.max()
    pros, fprs = [], []
    for threshold in np.arange(low, high, (high - low) / steps):
        found = maps > threshold
        overlaps = []
        for one, mask in zip(found, masks):
            regions, number = ndimage.label(mask, structure=np.ones((3, 3)))
            for region, place in enumerate(ndimage.find_objects(regions, number), start=1):
                inside = regions[place] == region
                overlaps.append(one[place][inside].mean())
        pros.append(np.mean(overlaps))
        fprs.append(found[~masks].mean())
    pros, fprs = np.array(pros), np.array(fprs)
    kept = fprs < fpr_limit
    fprs, pros = fprs[kept], pros[kept]
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1": f1.max(),
        "pixel_aupro": auc((fprs - fprs.min()) / (fprs.max() - fprs.min()), pros),
    }


def streamed_metrics(batches: Iterator[tuple[np.ndarray, np.ndarray]], convention: str = "exact") -> dict[str, float]:
    metrics = AnomalyMetrics(aupro_convention=convention)
    for maps, masks in batches:
        labels = masks.reshape(len(masks), -1).any(axis=1)
        metrics.update(np.zeros(len(maps)), labels, maps, masks)
    return metrics.compute()["categories"]["all"]


def peak_memory(count: int, side: int) -> float:
    """Peak memory in MB that metrics of `count` maps add to that of making the maps one batch at a time."""

    def peak(consume: Callable[[Iterator], object]) -> int:
        tracemalloc.start()
        consume(generate_maps(count, side))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    return (peak(streamed_metrics) - peak(lambda batches: [None for _ in batches])) / 2**20


def benchmark_metrics(options: argparse.Namespace):
    """All pixel metrics of one category, against scikit-learn and a region loop."""
    batches = list(generate_maps(options.maps, options.side))
    maps, masks = (np.concatenate(parts) for parts in zip(*batches))
    print(f"{options.maps} maps of {options.side} x {options.side}, {masks.any(axis=(1, 2)).mean():.0%} anomalous")
    ours = median_time(lambda: streamed_metrics(iter(batches)), options.repeats)
    start = time.perf_counter()
    expected = textbook_metrics(maps, masks)
    theirs = time.perf_counter() - start
    exact, release = streamed_metrics(iter(batches)), streamed_metrics(iter(batches), "release")
    print(f"  AnomalyMetrics               {1000 * ours / options.maps:8.2f} ms a map (median of {options.repeats})")
    print(f"  scikit-learn and region loop {1000 * theirs / options.maps:8.2f} ms a map   {theirs / ours:.0f} times")
    for name, value in expected.items():
        found = (release if name == "pixel_aupro" else exact)[name]
        print(f"  {name:12s} {value:.6f}, AnomalyMetrics {abs(found - value):.1e} apart")
    print(f"  AUPRO cut at the limit exactly {exact['pixel_aupro']:.6f}, the sweep {release['pixel_aupro']:.6f}")
    for count in (options.maps, 10 * options.maps):
        print(f"  peak memory added by {count} maps: {peak_memory(count, options.side):.0f} MB")


# Training

TINY = {"variant": "release", "image_size": 320, "feature_layers": (3, 6, 9, 12), "top_k": 15}


def new_model(clip: str | None, seed: int = 0) -> ViP2ClipForAnomalyDetection:
    """New adapters on a CLIP folder, or on a random CLIP of the size of ViT-L/14."""
    torch.manual_seed(seed)
    if clip is None:
        return ViP2ClipForAnomalyDetection(ViP2ClipConfig())
    return ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """Floating point operations per second of a large matrix product, the best of five."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ b).sum().item()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def vision_operations(config: ViP2ClipConfig) -> float:
    """Floating point operations of the vision tower for one image."""
    vision = config.clip_config.vision_config
    tokens, width = config.patch_grid**2 + 1, vision.hidden_size
    block = 4 * width**2 + 2 * width * vision.intermediate_size  # weights that every token meets
    return vision.num_hidden_layers * (2 * tokens * block + 4 * tokens**2 * width)


def time_training(model, root: Path, folder: Path, epochs: int, cache: Path | None, bf16: bool) -> tuple[float, float]:
    """Seconds of the cache pass and of the training after it."""
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
    passed = time.perf_counter() - start
    start = time.perf_counter()
    trainer.train()
    return passed, time.perf_counter() - start


def benchmark_training(options: argparse.Namespace):
    """Ten epochs with the feature cache against ten without, interleaved."""
    datasets.disable_progress_bars()
    model = new_model(options.clip)
    config = model.config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    # At ViT-L/14 width an epoch without the cache is measured once and counted as often as there are epochs.
    measured = options.epochs if options.clip else 1
    with tempfile.TemporaryDirectory() as folder:
        per_kind = max(1, options.images // 5)
        root = write_dataset(Path(folder, "data"), ("weave",), options.images - 4 * per_kind, per_kind, 256)
        count = len(load_folder(root))
        what = options.clip or "random weights of the size of CLIP ViT-L/14"
        print(
            f"{what}, {config.image_size} pixels, {device}, {str(dtype)[6:]}, {count} images, {options.epochs} epochs"
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
    how = "" if measured == options.epochs else f", extrapolated from {measured} epoch"
    print(f"  without cache {plain_time:8.1f} s{how}")
    print(f"  with cache    {cached_time:8.1f} s, of which the pass is {statistics.median(passes):.1f} s")
    print(f"  {plain_time / cached_time:.1f} times as fast (median of {options.repeats}, interleaved)")
    share = rate * needed / matrix_rate(torch.device(device), dtype)
    each = f"{needed / 1e12:.3f} TFLOP each"
    print(f"  cache pass {rate:.2f} images/s, {share:.0%} of the rate of a matrix product ({each})")
    command = [sys.executable, __file__, "step", *(["--clip", options.clip] if options.clip else [])]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    seconds, peak = found["seconds"], found["peak"]
    print(f"  a cached step of 8 images: {seconds:.2f} s, peak memory beyond the weights {peak:.0f} MB")


def benchmark_step(options: argparse.Namespace):
    """Time and peak memory of a cached training step with Adam, in a process of its own."""
    model = new_model(options.clip).train()
    config = model.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    layers, patches, width = len(config.feature_layers), config.patch_grid**2, config.clip_config.projection_dim
    batch = {
        "image_embeds": torch.randn(8, width, device=device),
        "patch_embeds": torch.randn(8, layers, patches, width, device=device),
        "labels": torch.tensor([0, 1] * 4, device=device),
        "mask_labels": torch.zeros(8, config.image_size, config.image_size, dtype=torch.uint8, device=device),
        "mask_label_valid": torch.ones(8, dtype=torch.bool, device=device),
    }
    batch["mask_labels"][1::2, 50:150, 50:90] = 1
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    memory = _CudaMemory() if device.type == "cuda" else _ProcessMemory()
    times = []
    for _ in range(4):
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        batch["labels"].cpu()
        times.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(times[1:]), "peak": memory.peak() / 2**20}))


# Inference


class Textbook:
    """ViP²-CLIP from plain library calls: prompts of 77 tokens, all hidden states kept, every patch projected, maps
    smoothed one by one with scipy. The same stages with the same numbers, as far as rounding goes."""

    def __init__(self, model: ViP2ClipForAnomalyDetection):
        self.model, self.config, self.clip = model, model.config, model.clip

    def get_vision_features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        clip = self.clip
        output = clip.vision_model(pixel_values, output_hidden_states=True, interpolate_pos_encoding=True)
        token = output.pooler_output if self.config.image_embeds_layernorm else output.last_hidden_state[:, 0]
        image_embeds = F.normalize(clip.visual_projection(token), dim=-1)
        layers = [
            clip.visual_projection(clip.vision_model.post_layernorm(output.hidden_states[number]))[:, 1:]
            for number in self.config.feature_layers
        ]
        return image_embeds, torch.stack([F.normalize(layer, dim=-1) for layer in layers], dim=1)

    def get_prompt_embeds(self, image_embeds: torch.Tensor) -> torch.Tensor:
        text, prompts = self.clip.text_model, self.model.get_prompts(image_embeds)
        longest = text.config.max_position_embeddings
        padded = F.pad(prompts, (0, 0, 0, longest - prompts.shape[2])).flatten(0, 1)
        hidden = text.embeddings(inputs_embeds=padded)
        mask = torch.full((longest, longest), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
        mask = mask.to(hidden.dtype)[None, None]
        for block in text.encoder.layers:
            hidden = block(hidden, mask)
        hidden = text.final_layer_norm(hidden).unflatten(0, (-1, 2))
        ends = torch.stack([hidden[:, i, length - 1] for i, length in enumerate(self.config.prompt_lengths)], dim=1)
        return F.normalize(self.clip.text_projection(ends), dim=-1)

    def align(self, text_embeds: torch.Tensor, patch_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and the maps of every layer, (B, L, 2, P)."""
        config, perception = self.config, self.model.fine_grained_perception
        heads, temperature = config.perception_num_heads, config.temperature
        text_embeds, maps, logits = text_embeds.float(), [], []

        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

        for patches in patch_embeds.float().unbind(1):
            queries, keys, values = (
                split(projection(states))
                for projection, states in (
                    (perception.q_proj, text_embeds),
                    (perception.k_proj, patches),
                    (perception.v_proj, patches),
                )
            )
            scale = None if config.perception_scaled else 1.0
            attended = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
            refined = F.normalize(perception.out_proj(attended.transpose(1, 2).flatten(2)), dim=-1)
            cosines = patches @ refined.mT
            probabilities = (cosines / temperature).softmax(-1)
            maps.append(probabilities.mT)
            chosen = (cosines[..., 1] - cosines[..., 0]).topk(config.top_k, dim=-1).indices
            pooled = torch.stack([one[places].mean(0) for one, places in zip(patches, chosen)])
            if config.image_score == "pooled_features":
                pooled = F.normalize(pooled, dim=-1)
            logits.append((refined @ pooled[..., None])[..., 0] / temperature)
        logits = torch.stack(logits)
        if config.image_score == "pooled_features":
            scores = logits.softmax(-1).mean(0)[:, 1]
        else:
            scores = logits.mean(0).softmax(-1)[:, 1]
        return scores, torch.stack(maps, dim=1)

    def get_anomaly_maps(self, layer_maps: torch.Tensor) -> torch.Tensor:
        grid, size = self.config.patch_grid, self.config.image_size
        layers = [
            F.interpolate(layer.unflatten(-1, (grid, grid)), (size, size), mode="bilinear", align_corners=False)
            for layer in layer_maps.unbind(1)
        ]
        mean = torch.stack([(1 - layer[:, 0] + layer[:, 1]) / 2 for layer in layers]).mean(0).cpu().numpy()
        return torch.stack(
            [torch.from_numpy(ndimage.gaussian_filter(one, self.config.smoothing_sigma)) for one in mean]
        )


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
        command = [sys.executable, __file__, "forward", "--dtype", dtype]
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
    memory = _CudaMemory() if device.type == "cuda" else _ProcessMemory()
    for _ in range(2):
        model(pixels)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(json.dumps({"weights": weights / 2**20, "peak": memory.peak() / 2**20}))


class _ProcessMemory:
    """What the process takes at most from now on, beyond what it has now."""

    def __init__(self):
        self.start = self._status("VmRSS")

    def peak(self) -> float:
        return self._status("VmHWM") - self.start

    @staticmethod
    def _status(name: str) -> float:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
        raise RuntimeError(f"/proc/self/status has no {name}.")


class _CudaMemory:
    def __init__(self):
        torch.cuda.reset_peak_memory_stats()
        self.start = torch.cuda.memory_allocated()

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() - self.start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="indexing of a folder")
    data.add_argument("--images", type=int, default=5000)
    data.add_argument("--repeats", type=int, default=5)
    data.set_defaults(run=benchmark_data)
    metrics = commands.add_parser("metrics", help="pixel metrics of one category")
    metrics.add_argument("--maps", type=int, default=200)
    metrics.add_argument("--side", type=int, default=518)
    metrics.add_argument("--repeats", type=int, default=3)
    metrics.set_defaults(run=benchmark_metrics)
    training = commands.add_parser("training", help="ten epochs with and without the feature cache")
    training.add_argument("--clip", help="folder of a CLIP (default: random weights of the size of ViT-L/14)")
    training.add_argument("--images", type=int, default=6)
    training.add_argument("--epochs", type=int, default=10)
    training.add_argument("--repeats", type=int, default=3)
    training.add_argument("--bf16", action="store_true")
    training.set_defaults(run=benchmark_training)
    step = commands.add_parser("step", help="one cached training step; used by training")
    step.add_argument("--clip")
    step.set_defaults(run=benchmark_step)
    inference = commands.add_parser("inference", help="stages of a forward against a textbook implementation")
    inference.add_argument("--model", help="checkpoint (default: random weights of the size of ViT-L/14)")
    inference.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    inference.add_argument("--dtypes", nargs="*", default=["bfloat16"], choices=["bfloat16", "float16"])
    inference.add_argument("--towers", nargs="*", default=[], choices=["eager", "channels_last", "compile"])
    inference.add_argument("--repeats", type=int, default=3)
    inference.set_defaults(run=benchmark_inference)
    forward = commands.add_parser("forward", help="memory of one forward; used by inference")
    forward.add_argument("--model")
    forward.add_argument("--dtype", default="float32")
    forward.set_defaults(run=benchmark_forward)
    options = parser.parse_args()
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}")
    options.run(options)


if __name__ == "__main__":
    main()
