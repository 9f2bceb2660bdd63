"""Measure the time and memory of detectors, as in Table 3 of the paper, relative to the vision tower of CLIP.

Every time comes with its ratio to the vision tower alone. The tower processes the same images and runs alternately
with the detector, so a machine that becomes slower affects both.
"""

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.device_clock import CpuClock, DeviceClock, device_clock
from ..utils.hardware import describe_hardware
from ..utils.versions import versions


if TYPE_CHECKING:
    from ..evaluation.detector import Detector


# Precision and whether the vision tower is compiled, by name.
VARIANTS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "float32-compiled": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16-compiled": (torch.bfloat16, True),
}
# Used in Table 3 of the paper: images are scored one by one.
PAPER_VARIANT, PAPER_BATCH_SIZE = "float32", 1


class VisionTower:
    """
    The vision tower of a model alone, not compiled: from pixels to hidden states, without projections.

    Args:
        model ([`ViP2ClipForAnomalyDetection`] or [`BaselineModel`]): the model. The tower has its precision and
            device.
        image_processor ([`ViP2ClipImageProcessor`]): prepares the images.
    """

    def __init__(self, model: Any, image_processor: ViP2ClipImageProcessor) -> None:
        self.model, self.image_processor = model, image_processor

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """
        Prepare the pixels of images.

        Args:
            images (`Sequence[PIL.Image.Image]`): RGB photos.

        Returns:
            `torch.Tensor`: pixel values of shape `(images, 3, height, width)`, on the CPU.
        """
        pixels: torch.Tensor = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Run the tower, including the copy of the pixels to its device.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, height, width)`): the pixels.

        Returns:
            `torch.Tensor`: hidden states of shape `(images, 1 + patches, width)`.
        """
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        hidden: torch.Tensor = self.model.clip.vision_model(pixel_values, interpolate_pos_encoding=True)[0]
        return hidden


def trainable_parameters(model: torch.nn.Module) -> int:
    """
    Count the trainable parameters of a model.

    Args:
        model (`torch.nn.Module`): the model, on any device.

    Returns:
        `int`: the number of weights with gradients.
    """
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def measure_inference(
    detector: "Detector",
    images: Sequence[Image.Image],
    *,
    tower: VisionTower,
    batch_size: int = PAPER_BATCH_SIZE,
    repeats: int = 10,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    clock: DeviceClock | None = None,
) -> dict[str, Any]:
    """
    Measure the time and the peak memory of a detector, alternately with the vision tower on the same images.

    A repeat scores all images in batches. `prepare` is measured with the clock of the CPU; `score` and the tower with
    CUDA events on a GPU. Reading image files is not measured.

    Args:
        detector ([`Detector`]): what to measure, on `device`.
        images (`Sequence[PIL.Image.Image]`): RGB photos in memory; a multiple of `batch_size`.
        tower ([`VisionTower`]): the vision tower to compare with, on `device`.
        batch_size (`int`, defaults to 1): number of images per batch.
        repeats (`int`, defaults to 10): number of repeats that count.
        warmup (`int`, defaults to 2): number of repeats before. Compiled models are compiled in them.
        device (`torch.device` or `str`, defaults to `"cpu"`): the device.
        clock ([`DeviceClock`], *optional*): replaces the clock of the device.

    Returns:
        `dict`: JSON-serializable. `name`, `hardware`, `versions`, `batch_size`, `image_size`, `num_images`, `repeats`,
        `warmup`; `prepare`, `score` and `tower`, seconds per image as `median`, `mean` and `sd` over the repeats (`sd`
        is `None` with one repeat); `ratio`, the same of `score` divided by `tower` in each repeat; `memory_bytes`, the
        peak memory of the detector, and `memory_kind`, what it counts.

    Raises:
        ValueError: if the number of images, `batch_size`, `repeats` or `warmup` is wrong.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("repeats", repeats, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}.")
    if not images or len(images) % batch_size:
        raise ValueError(f"The number of images is {len(images)}; expected a multiple of batch_size, {batch_size}.")
    clock = device_clock(device) if clock is None else clock
    host = CpuClock()  # prepare always runs on the CPU
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    pixels = [tower.prepare(batch) for batch in batches]
    runs: dict[str, list[float]] = {"prepare": [], "score": [], "tower": []}
    peak = 0

    def run_detector(number: int, seconds: dict[str, float]) -> int:
        clock.reset_memory()
        prepared, taken = host.timed(lambda: detector.prepare(batches[number]))
        seconds["prepare"] += taken
        seconds["score"] += clock.timed(lambda: detector.score(prepared))[1]
        return clock.peak_memory()

    def run_tower(number: int, seconds: dict[str, float]) -> int:
        seconds["tower"] += clock.timed(lambda: tower(pixels[number]))[1]
        return 0

    for repeat in range(warmup + repeats):
        seconds = dict.fromkeys(runs, 0.0)
        # Each of them is first in every other repeat.
        order = (run_detector, run_tower) if repeat % 2 == 0 else (run_tower, run_detector)
        found = [run(number, seconds) for number in range(len(batches)) for run in order]
        if repeat >= warmup:
            peak = max(peak, *found)
            for part, total in seconds.items():
                runs[part].append(total / len(images))
    ratios = [score / alone for score, alone in zip(runs["score"], runs["tower"])]
    return {
        "name": detector.name,
        "hardware": describe_hardware(device),
        "versions": versions(),
        "batch_size": batch_size,
        "image_size": detector.image_size,
        "num_images": len(images),
        "repeats": repeats,
        "warmup": warmup,
        **{part: spread(values) for part, values in runs.items()},
        "ratio": spread(ratios),
        "memory_bytes": peak,
        "memory_kind": clock.memory_kind,
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """
    Summarize repeated measurements.

    Args:
        values (`Sequence[float]`): the measurements, at least one.

    Returns:
        `dict`: `median`, `mean` and `sd`, the standard deviation of a sample, `None` for a single value.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"median": statistics.median(values), "mean": statistics.fmean(values), "sd": deviation}


@dataclass(frozen=True)
class EfficiencyVariant:
    """
    A way to run a model.

    Args:
        name (`str`): one of `VARIANTS`.
        dtype (`torch.dtype`): precision.
        compiled (`bool`): whether the vision tower is compiled.
        detector ([`Detector`]): the detector.
        tower ([`VisionTower`]): its vision tower in the same precision, not compiled.
        parameters (`int`): number of trainable parameters.
    """

    name: str
    dtype: torch.dtype
    compiled: bool
    detector: "Detector"
    tower: VisionTower
    parameters: int


def efficiency_variants(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    *,
    names: Sequence[str] = tuple(VARIANTS),
    backend: str = "inductor",
) -> Iterator[EfficiencyVariant]:
    """
    Create the variants of a model one after another: float32 and bfloat16, with and without `torch.compile`.

    A variant in the precision of the model shares its weights. The others have copies, freed when the next one is
    created. On a GPU, the model moves to the CPU while a copy is used, so that the peak memory is that of the copy.
    On a CPU, the resident memory of a copy includes the model.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model, on its device. It is set to eval mode.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.
        names (`Sequence[str]`, defaults to all): variants to create, from `VARIANTS`.
        backend (`str`, defaults to `"inductor"`): backend of `torch.compile`.

    Yields:
        [`EfficiencyVariant`]: a variant. Use it before the next one is created.

    Raises:
        ValueError: if a name is unknown.
    """
    from ..inference.detector import ViP2ClipDetector

    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"The variant is {name!r}; expected {', '.join(map(repr, VARIANTS))}.")
    original: Any = model.eval()  # the types of `to` are wrong in transformers
    device, parameters = model.device, trainable_parameters(model)
    for name in names:
        dtype, compiled = VARIANTS[name]
        moved = dtype != model.dtype and device.type != "cpu"
        try:
            if moved:
                original.to("cpu")
            used = original if dtype == model.dtype else copy.deepcopy(original).to(dtype).to(device)
            tower = VisionTower(used, image_processor)
            if compiled:
                used = copy.copy(used)  # shares the weights; the model itself stays as it is
                # One graph per batch size, compiled at the first call.
                used.get_image_features = torch.compile(used.get_image_features, dynamic=False, backend=backend)
            detector = ViP2ClipDetector(used, image_processor)
            yield EfficiencyVariant(name, dtype, compiled, detector, tower, parameters)
            del used, tower, detector
        finally:
            if moved:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                original.to(device)


def measure_variants(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    images: Sequence[Image.Image],
    *,
    names: Sequence[str] = tuple(VARIANTS),
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 10,
    warmup: int = 2,
    backend: str = "inductor",
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """
    Measure the variants of a model on its device at several batch sizes, see [`measure_inference`].

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.
        images (`Sequence[PIL.Image.Image]`): RGB photos. For each batch size, the largest number of complete batches
            is used.
        names, backend: see [`efficiency_variants`].
        batch_sizes (`Sequence[int]`, defaults to 1 and 8): the batch sizes.
        repeats, warmup: see [`measure_inference`]. A compiled variant needs a warm-up.
        report (`Callable`, *optional*): called with each result.

    Returns:
        `list[dict]`: results of [`measure_inference`], with `variant`, `dtype`, `compile` and `trainable_parameters`.

    Raises:
        ValueError: if an argument is wrong, or if there are fewer images than the largest batch size.
    """
    if not batch_sizes or len(images) < max(batch_sizes):
        raise ValueError(
            f"The number of images is {len(images)}; expected at least {max(batch_sizes, default=1)}, one batch."
        )
    if warmup < 1 and any(VARIANTS[name][1] for name in names if name in VARIANTS):
        raise ValueError(f"warmup is {warmup}; expected at least 1, because the first repeat compiles the model.")
    results = []
    for variant in efficiency_variants(model, image_processor, names=names, backend=backend):
        for batch_size in batch_sizes:
            result = measure_inference(
                variant.detector, images[: len(images) // batch_size * batch_size], tower=variant.tower,
                batch_size=batch_size, repeats=repeats, warmup=warmup, device=variant.tower.model.device,
            )  # fmt: skip
            result.update(
                variant=variant.name, dtype=str(variant.dtype).removeprefix("torch."), compile=variant.compiled,
                trainable_parameters=variant.parameters,
            )  # fmt: skip
            results.append(result)
            if report is not None:
                report(result)
        del variant
    return results


__all__ = [
    "PAPER_BATCH_SIZE",
    "PAPER_VARIANT",
    "VARIANTS",
    "EfficiencyVariant",
    "VisionTower",
    "efficiency_variants",
    "measure_inference",
    "measure_variants",
    "spread",
    "trainable_parameters",
]
