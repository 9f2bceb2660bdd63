"""Predict any number of images into a folder: a Parquet table and, on request, maps and heatmaps."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..models.loading import load_checkpoint, model_checksum, name_of
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.distributed import from_all, from_first, world
from ..utils.versions import versions
from .folder import PredictionFolder, check_room
from .images import as_images
from .loop import predict_chunks


logger = logging.get_logger(__name__)


def predict_to_folder(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    source: Any,
    output: str | os.PathLike,
    *,
    name: str = "this model",
    batch_size: int = 8,
    num_workers: int = 0,
    threshold: float | tuple[float, float] | None = None,
    top_k: int | None = None,
    tile_size: int | None = None,
    tile_overlap: float | None = None,
    heatmaps: bool = False,
    maps: bool = False,
    chunk_size: int = 256,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Predict all images of a folder or data set and write `predictions.parquet`, a row an image:

    - `id` (string): path below the folder, with forward slashes, or the `image_id` of the data set,
    - `score` (float32): probability that the image is anomalous, in [0, 1],
    - `label` (string): "normal" or "anomalous",
    - `p_value` (float32): from a calibrated checkpoint, how likely a normal image has a score this large; else null,
    - `anomalous_area` (float32): share of the pixels of its map that are anomalous, in [0, 1],
    - `error` (string): why it could not be read, in which case those before are null; null otherwise.

    A call with the same model, images and settings and the same folder goes on where an earlier one stopped, and ends
    with the same table; `batch_size`, `num_workers` and the number of processes may be others. Where torch.distributed
    is initialised the processes share the work and have to see the same folders. Memory does not grow with the number
    of images, but for their names: these are mapped from a file.

    Args:
        model, image_processor:
            What to predict with; the model on the device it is to run on.
        source (`str`, `os.PathLike`, [`DataSource`] or `datasets.Dataset`):
            A folder: every image file in it and its subfolders, without hidden ones. Or a data set, labelled or not: a
            table, `meta.json`, Hub id, or `NAME=ROOT`.
        output (`str` or `os.PathLike`):
            Where to write: a new folder, or that of the same prediction.
        name (`str`, defaults to `"this model"`):
            What to call the model in what is written.
        batch_size (`int`, defaults to 8):
            Images that go through the model together.
        num_workers (`int`, defaults to 0):
            Processes that read images, for each process.
        threshold, top_k, tile_size, tile_overlap (*optional*):
            See [`AnomalyDetectionPipeline`]. With tiles a batch of decoded photos is held, and maps are those of the
            photos, at their size.
        heatmaps (`bool`, defaults to `False`):
            Whether to draw the map over every photo, into `heatmaps/`.
        maps (`bool`, defaults to `False`):
            Whether to keep the maps, float16 at the size of the model, in `maps/`.
        chunk_size (`int`, defaults to 256):
            Images that are done together; at most so many, for each process, are done again after a stop.
        overwrite (`bool`, defaults to `False`):
            Delete what an earlier prediction has written there, and nothing else.
        progress (`bool`, defaults to `False`):
            Whether the first process shows a progress bar.

    Returns:
        `dict`: `num_images`, `num_normal`, `num_anomalous`, `num_unreadable`, `num_done_before` (images that were
        there when the call began) and `table`, the path of `predictions.parquet`.

    Raises:
        OSError: nothing to read, a folder that cannot be written or holds something else, or another prediction.
        ValueError: no images, a threshold, top_k or size out of range, or scores that are not finite; names the
            images.
    """
    for argument, value in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; expected at least 1.")
    was_training = model.training
    detector = AnomalyDetectionPipeline(
        model=model,
        image_processor=image_processor,
        task="anomaly-detection",
        device=model.device,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
        top_k=top_k,
    )
    model.train(was_training)  # until it is needed, and afterwards
    scored_with = detector.score_settings()
    patches = model.config.patch_grid**2
    if top_k is not None and not 1 <= top_k <= patches:
        raise ValueError(f"top_k is {top_k}; expected an integer from 1 to {patches}, the patches of an image.")
    if threshold is None:
        threshold = (model.config.image_threshold, model.config.pixel_threshold)
    nothing = {"scores": torch.zeros(0), "anomaly_maps": torch.zeros(0, 1, 1)}
    image_processor.post_process_anomaly_detection(nothing, threshold=threshold)  # checks it
    pair = list(threshold) if isinstance(threshold, (tuple, list)) else [threshold, threshold]

    folder = PredictionFolder(Path(output), chunk_size)
    images = as_images(source, folder.path)
    # What it does to images, not where its code is from.
    processing = json.loads(image_processor.to_json_string())
    processing = {key: value for key, value in processing.items() if key not in ("auto_map", "image_processor_type")}
    settings = {
        "kind": "prediction",
        "model_checksum": model_checksum(model),
        "image_processor": processing,
        "dtype": str(model.dtype).removeprefix("torch."),
        "source": images.description,
        "image_threshold": pair[0],
        "pixel_threshold": pair[1],
        **scored_with,
        "heatmaps": heatmaps,
        "maps": maps,
        "chunk_size": chunk_size,
    }
    error, done = None, None
    if world()[0] == 0:
        try:
            done = folder.prepare(images, settings, {"model": name, "versions": versions()}, overwrite)
        except (OSError, ValueError) as raised:
            error = raised
    try:
        if (error := from_first(error)) is not None:
            raise error
        if done := from_first(done):
            return {**from_first(folder.summary() if world()[0] == 0 else None), "num_done_before": done}
        folder.open()
        if not all(from_all(images.is_here(folder.num_images))):
            raise OSError("Not every process sees the images; expected a folder that all machines see.")
        missing = from_first(folder.missing() if world()[0] == 0 else None)
        before = folder.num_images - sum(len(folder.positions(chunk)) for chunk in missing)
        if maps and not scored_with["tile_size"]:
            check_room(folder.path, folder.num_images - before, model.config.image_size)
        options = {"batch_size": batch_size, "num_workers": num_workers, "threshold": threshold}
        options.update(heatmaps=heatmaps, maps=maps, progress=progress)
        predict_chunks(detector, images, folder, missing[world()[0] :: world()[1]], before, **options)
        from_all(None)  # until the parts of all processes are there
        summary = None
        if world()[0] == 0:
            try:
                folder.finish()
                summary = folder.summary()
            except OSError as raised:
                error = raised
        if (error := from_first(error)) is not None:
            raise error
        return {**from_first(summary), "num_done_before": before}
    finally:
        folder.release()


def predict_checkpoint(
    checkpoint: str | os.PathLike,
    source: Any,
    output: str | os.PathLike,
    *,
    device: str | None = None,
    dtype: torch.dtype | str = "float32",
    backbone: str | os.PathLike | None = None,
    compile: bool = False,
    name: str | None = None,
    **options,
) -> dict[str, Any]:
    """
    [`predict_to_folder`] for a checkpoint. Under `accelerate launch` or `torchrun` the processes find each other.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder or Hub id.
        source, output, options:
            See [`predict_to_folder`].
        device, dtype, backbone:
            See [`vip2clip_hf.models.loading.load_checkpoint`].
        compile (`bool`, defaults to `False`):
            Whether to compile the vision tower. Takes a while, and pays for many images on a GPU.
        name (`str`, *optional*):
            What to call it in what is written; the name of the checkpoint, when not given.

    Raises:
        ImportError: accelerate is not installed.
        OSError, ValueError, RuntimeError: see [`predict_to_folder`] and the model's `from_pretrained`.
    """
    model, image_processor = load_checkpoint(checkpoint, device=device, dtype=dtype, backbone=backbone)
    if compile:
        model.get_vision_features = torch.compile(model.get_vision_features)
    name = name_of(checkpoint) if name is None else name
    return predict_to_folder(model, image_processor, source, output, name=name, **options)


__all__ = ["logger", "predict_checkpoint", "predict_to_folder"]
