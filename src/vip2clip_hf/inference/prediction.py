"""Predict any number of images: a Parquet table and, on request, anomaly maps and heatmaps."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..models.loading import load_checkpoint
from ..models.vip2clip.arguments_vip2clip import call_arguments, threshold_pair
from ..models.vip2clip.heif_vip2clip import register_heif
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import as_bank
from ..utils.contents import decoding
from ..utils.distributed import from_all, from_first, on_first, world
from ..utils.files import name_of
from ..utils.urls import is_remote, local_path
from ..utils.versions import versions
from .differences import calibrated_with
from .folder import PredictionFolder
from .growing import growing
from .image_files import check_room
from .images import as_images
from .loop import predict_chunks
from .settings import scoring_settings


ENGINES = ("accelerate", "ray")


def predict_to_folder(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    source: Any,
    output: str | os.PathLike,
    *,
    name: str = "this model",
    batch_size: int = 8,
    num_workers: int = 0,
    threshold: float | tuple[float | None, float | None] | None = None,
    top_k: int | None = None,
    tile_size: int | None = None,
    tile_overlap: float | None = None,
    bit_depth: int | None = None,
    page: int | None = None,
    references: Any = "auto",
    heatmaps: bool = False,
    maps: bool = False,
    chunk_size: int = 256,
    overwrite: bool = False,
    recursive: bool = True,
    append: bool = False,
    progress: bool = False,
    engine: str = "accelerate",
    num_actors: int | None = None,
    actor_device: str | None = None,
) -> dict[str, Any]:
    """
    Predict all images of a folder or dataset and write `predictions.parquet`, a table with one row per image:

    - `id` (string): path below the folder, with forward slashes, or the `image_id` of the dataset.
    - `score` (float32): anomaly score of the image, in [0, 1].
    - `label` (string): `"normal"` or `"anomalous"`, as named in `id2label` of the configuration.
    - `p_value` (float32): probability that a normal image has a score at least as large, in (0, 1]. Null if the
      checkpoint is not calibrated with these settings.
    - `anomalous_area` (float32): fraction of anomalous pixels in the anomaly map, in [0, 1].
    - `error` (string): why the image could not be read; the other columns are then null. Null if it could be read.

    To resume an interrupted prediction, call the function again with the same model, images, settings and folder. The
    resulting table is the same as without an interruption. `batch_size`, `num_workers` and the number of processes can
    differ.

    If torch.distributed is initialized, the processes share the work. All of them need access to the same folders.
    Memory use does not grow with the number of images, except for the names of the images, which are memory-mapped.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            Model, on the device to use.
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor of the model.
        source (`str`, `os.PathLike`, [`DataSource`] or `datasets.Dataset`):
            A folder, of which all image files are predicted, including subfolders and except hidden files. Or a
            dataset, with or without labels: a table, `meta.json`, Hub id, or `NAME=ROOT`. Or a folder in a store, such
            as `s3://bucket/photos`; or tar or Parquet files with images, see [`find_source`].
        output (`str` or `os.PathLike`):
            A new folder, or the folder of the same prediction. Can be in a store, such as `s3://bucket/predictions`.
        name (`str`, defaults to `"this model"`):
            Name of the model in the settings.
        batch_size (`int`, defaults to 8):
            Number of images per batch.
        num_workers (`int`, defaults to 0):
            Number of worker processes that read images, for each predicting process.
        threshold, top_k, tile_size, tile_overlap (*optional*):
            See [`AnomalyDetectionPipeline`]. With tiles, a batch of decoded images is kept in memory.
        bit_depth, page (*optional*):
            How to read images, see [`load_image`]. They default to those of the image processor.
        references ([`ReferenceBank`] or photos, *optional*, defaults to those of the model):
            Photos of good parts to compare with, see [`AnomalyDetectionPipeline`]. `None` uses none. With several
            processes, the first one reads them.
        heatmaps (`bool`, defaults to `False`):
            Whether to save heatmaps in `heatmaps/`, at the size of the image.
        maps (`bool`, defaults to `False`):
            Whether to save anomaly maps in `maps/`: float16, at the size of the model, or of the image if it is split
            into tiles.
        chunk_size (`int`, defaults to 256):
            Number of images per chunk. After an interruption, each process repeats at most one chunk.
        overwrite (`bool`, defaults to `False`):
            Whether to delete the files of an existing prediction in the folder. Other files are kept.
        recursive (`bool`, defaults to `True`):
            Whether to read the subfolders of a folder of images.
        append (`bool`, defaults to `False`):
            Whether to keep the rows of images that were deleted or moved away since the last call. New images are
            added at the end of the table. For local folders of images only; the output can be in a store.
        progress (`bool`, defaults to `False`):
            Whether the first process shows a progress bar.
        engine (`"accelerate"` or `"ray"`, defaults to `"accelerate"`):
            What runs several processes. `"accelerate"` uses those that `accelerate launch` or `torchrun` has started.
            `"ray"` starts actors with a copy of the model on a Ray cluster, or on this machine. The table is the same.
        num_actors (`int`, *optional*):
            With Ray: number of actors. By default, one per GPU, or one per four CPU cores if there is no GPU.
        actor_device (`str`, *optional*):
            With Ray: device of the actors, such as `"cpu"`. By default, GPUs if the cluster has some.

    Returns:
        `dict[str, Any]`: `num_images`, `num_normal`, `num_anomalous`, `num_unreadable`, `num_done_before` (number of
        images predicted before this call) and `table` (path of `predictions.parquet`).

    Raises:
        ImportError: if pyarrow is not installed, or ray for this engine, or the package for a store.
        OSError: if the source does not exist, if the folder cannot be written, contains other files or a prediction
            with other settings, or if another program is predicting into it.
        RuntimeError: if a store cannot be reached, or if Ray fails. The prediction can be resumed.
        ValueError: if there are no images, if an argument is out of range, if append is set with overwrite or for
            another source than a local folder, or if scores are not finite. The message names the images.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; expected one of {', '.join(ENGINES)}.")
    if num_actors is not None and (engine != "ray" or num_actors < 1):
        raise ValueError(
            f"num_actors is {num_actors} with engine {engine!r}; expected at least 1, with the engine 'ray' only."
        )
    for argument, value in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; expected an integer of at least 1.")
    if append and overwrite:
        raise ValueError("append and overwrite exclude each other; pass one of them.")
    was_training = model.training
    reading: dict[str, Any] = {"tile_size": tile_size, "tile_overlap": tile_overlap, "top_k": top_k}
    reading.update(bit_depth=bit_depth, page=page)
    reading = call_arguments(reading)
    detector = AnomalyDetectionPipeline(
        model=model,
        image_processor=image_processor,
        task="anomaly-detection",
        device=model.device,
        references=on_first(as_bank, references, model, image_processor, reading),
        **reading,
    )
    model.train(was_training)  # the pipeline switched to eval mode
    scored_with = detector.score_settings()
    patches = model.config.patch_grid**2
    if top_k is not None and not 1 <= top_k <= patches:
        raise ValueError(f"top_k is {top_k}; expected an integer from 1 to {patches}, the number of patches.")
    decision = detector.decision
    threshold = threshold_pair(threshold, (decision.image_threshold, decision.pixel_threshold))

    run: Callable[..., None] = predict_chunks
    if engine == "ray":
        if world()[1] > 1:
            raise ValueError(
                "engine is 'ray' in one of several processes; start the command once, without a launcher."
            )
        from .ray_engine import predict_with_ray

        run = partial(predict_with_ray, num_actors=num_actors, device=actor_device)
    output = local_path(os.fspath(output))
    images = as_images(source, output, recursive)
    folder = _open_folder(output, chunk_size)
    if append:
        images = growing(images, output, folder.table, recursive)
    settings = {
        "kind": "prediction",
        **scoring_settings(detector, threshold),
        "source": images.description,
        "heatmaps": heatmaps,
        "maps": maps,
        "chunk_size": chunk_size,
    }
    register_heif()  # one of the formats in `decoding`, whether a photo was opened before or not
    more = {
        "model": name,
        "versions": versions(),
        "decoding": decoding(),
        "calibrated_with": calibrated_with(decision),
    }
    rank, world_size = world()
    error: Exception | None = None
    num_finished = None
    try:
        if rank == 0:
            try:
                num_finished = folder.prepare(images, settings, more, overwrite)
            except Exception as raised:  # the other processes wait for it
                error = raised
        if (error := from_first(error)) is not None:
            raise error
        if num_finished := from_first(num_finished):
            return {**from_first(folder.summary() if rank == 0 else None), "num_done_before": num_finished}
        folder.open()
        if not all(from_all(images.is_here(folder.num_images))):
            raise OSError(
                "The images are not visible to all processes; expected a folder that all processes and machines share."
            )
        missing = from_first(folder.missing() if rank == 0 else None)
        num_done = from_first(folder.num_done() if rank == 0 else None)
        if maps and not scored_with["tile_size"]:
            check_room(folder.path, folder.num_images - num_done, model.config.image_size)
        run(
            detector,
            images,
            folder,
            missing[rank::world_size],
            num_done,
            batch_size=batch_size,
            num_workers=num_workers,
            threshold=threshold,
            heatmaps=heatmaps,
            maps=maps,
            progress=progress,
        )
        from_all(None)  # wait for the parts of all processes
        summary = None
        if rank == 0:
            try:
                folder.finish()
                summary = folder.summary()
            except Exception as raised:  # the other processes wait for it
                error = raised
        if (error := from_first(error)) is not None:
            raise error
        return {**from_first(summary), "num_done_before": num_done}
    finally:
        folder.release()


def _open_folder(output: str, chunk_size: int) -> PredictionFolder:
    """The output folder, on this machine or in a store."""
    if not is_remote(output):
        return PredictionFolder(Path(output), chunk_size)
    from .remote_folder import RemotePredictionFolder

    return RemotePredictionFolder(output, chunk_size)


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
    **options: Any,
) -> dict[str, Any]:
    """
    Load a checkpoint and predict all images of a folder or dataset, see [`predict_to_folder`].

    Under `accelerate launch` or `torchrun`, this also sets up communication between the processes.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder or Hub id.
        source, output:
            See [`predict_to_folder`].
        device (`str`, *optional*):
            Device of the model. By default, an accelerator if available, otherwise the CPU.
        dtype (`torch.dtype` or `str`, defaults to `"float32"`):
            Dtype of the model.
        backbone (`str` or `os.PathLike`, *optional*):
            Folder or Hub id of the CLIP backbone, for an adapters-only checkpoint. By default, the `backbone_id` of
            the checkpoint.
        compile (`bool`, defaults to `False`):
            Whether to compile the vision tower. This takes a while and can pay off for many images on a GPU.
        name (`str`, *optional*):
            Name of the model in the settings. Defaults to the name of the checkpoint.
        options:
            Further arguments of [`predict_to_folder`].

    Returns:
        `dict[str, Any]`: see [`predict_to_folder`].

    Raises:
        ImportError: if accelerate or pyarrow are not installed.
        OSError: if checkpoint or backbone are not found, or see [`predict_to_folder`].
        RuntimeError: if weights are missing.
        ValueError: if device or dtype are invalid, if the backbone is not the one used in training, or see
            [`predict_to_folder`].
    """
    # With Ray, the actors choose their devices.
    if options.get("engine") == "ray":
        options["actor_device"], device = device, "cpu"
    model, image_processor = load_checkpoint(checkpoint, device=device, dtype=dtype, backbone=backbone)
    if compile:
        if options.get("engine") == "ray":
            raise ValueError("compile is True with engine 'ray'; expected False: a compiled model cannot be sent.")
        compiled = torch.compile(model.get_image_features)
        model.get_image_features = compiled  # only in this instance
    name = name_of(checkpoint) if name is None else name
    return predict_to_folder(model, image_processor, source, output, name=name, **options)


__all__ = ["predict_checkpoint", "predict_to_folder"]
