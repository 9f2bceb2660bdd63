"""Predict with Ray Data: actors hold the model and predict chunks, this process writes their parts of the table."""

import contextlib
import copy
import logging as standard_logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.extras import extra
from ..utils.file_state import FileState
from .earlier import RESULTS, STATE
from .folder import PredictionFolder
from .images import Images
from .ray_job import AT, CHUNK, NAME, POSITION, Attempts, Job, failure_of
from .ray_worker import ChunkPredictor


with extra("ray", "Predicting with Ray"):
    import pyarrow as pa
    import ray
    import ray.data


# CPU cores of an actor without a GPU, if there are as many.
CORES = 4
# Chunks that are handed to Ray at once: at least WINDOW, and PER_ACTOR for each actor. The model is loaded for each.
WINDOW, PER_ACTOR = 4096, 512
# How often a chunk is tried when its actor dies. Ray itself would try an image that kills its process for ever.
MOST_ATTEMPTS = 8


def predict_with_ray(
    detector: AnomalyDetectionPipeline,
    images: Images,
    folder: PredictionFolder,
    chunks: Sequence[int],
    num_done: int,
    *,
    batch_size: int,
    num_workers: int,
    threshold: float | tuple[float | None, float | None] | None,
    heatmaps: bool,
    maps: bool,
    progress: bool,
    num_actors: int | None = None,
    device: str | None = None,
) -> None:
    """
    Predict chunks on a Ray cluster, and write their parts of the table.

    Uses the cluster that this process is connected to, that of `RAY_ADDRESS`, or the one that runs on this machine.
    Otherwise, Ray is started on this machine and stopped at the end. A chunk whose actor dies is predicted again.

    Args:
        detector, images, folder, chunks, num_done, batch_size, threshold, heatmaps, maps, progress:
            See [`predict_chunks`].
        num_workers (`int`):
            Number of threads of each actor that read images.
        num_actors (`int`, *optional*):
            Number of actors. By default, one per GPU, or one per four CPU cores if there is no GPU.
        device (`str`, *optional*):
            Device of the actors. By default, GPUs if the cluster has some.

    Raises:
        OSError: if a file cannot be written, or if actors do not see the images.
        RuntimeError: if Ray fails.
        ValueError: if scores are not finite. The message names the images of the batch.
    """
    waiting = []
    for chunk in chunks:
        if folder.unknown(chunk):
            waiting.append(chunk)
        else:  # all images are known
            folder.write_part(chunk, {}, {})
    arguments = {
        "image_processor": detector.image_processor,
        "references": detector.references,
        **{name: value for name, value in detector.score_settings().items() if name in _ARGUMENTS},
        **detector.reading_options(),
    }
    job = Job(
        images, folder.num_images, arguments, batch_size, max(1, num_workers), threshold, heatmaps, maps, folder.new,
        Image.MAX_IMAGE_PIXELS,
    )  # fmt: skip
    bar = tqdm(total=folder.num_images, initial=num_done, desc="predicting", unit="image", disable=not progress)
    with bar, _cluster():
        count, options, device = _resources(num_actors, device)
        model = detector.model if detector.model.device.type == "cpu" else copy.deepcopy(detector.model).cpu()
        # Kept until the end, so that an actor can start again.
        reference = ray.put((model, job))
        attempts = ray.remote(num_cpus=0)(Attempts).remote(MOST_ATTEMPTS)
        window = max(WINDOW, PER_ACTOR * count)
        for start in range(0, len(waiting), window):
            tables = [_table_of(folder, chunk) for chunk in waiting[start : start + window]]
            dataset = ray.data.from_arrow(tables).map_batches(
                ChunkPredictor,
                fn_constructor_args=([reference], attempts, device),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(count, len(tables))),
                **options,
            )
            for result in _results(dataset):
                if (error := failure_of(result)) is not None:
                    raise error
                _write(folder, result)
                bar.update(len(result))


# Settings of scores that are arguments of the pipeline.
_ARGUMENTS = ("top_k", "tile_size", "tile_overlap")


def _table_of(folder: PredictionFolder, chunk: int) -> "pa.Table":
    """Everything an actor needs to read the images of a chunk that are not known yet."""
    positions = folder.unknown(chunk)
    locations = folder.names.locations()
    columns: dict[str, Any] = {
        CHUNK: np.full(len(positions), chunk, dtype=np.int64),
        POSITION: np.array(positions, dtype=np.int64),
        NAME: pa.array([folder.names[position] for position in positions], pa.binary()),
    }
    if locations is not None:
        columns.update((f"{AT}{name}", locations[name].take(positions)) for name in locations.column_names)
    return pa.table(columns)


def _write(folder: PredictionFolder, result: "pa.Table") -> None:
    rows, states = {}, {}
    for row in result.to_pylist():
        rows[row[POSITION]] = {name: row[name] for name in RESULTS.names}
        states[row[POSITION]] = FileState(**{name: row[name] for name in STATE.names})
    chunk = result[CHUNK][0].as_py()
    if list(rows) != folder.unknown(chunk):
        raise RuntimeError(
            f"Ray returned {len(rows)} images for chunk {chunk}; expected {len(folder.unknown(chunk))}."
        )
    folder.write_part(chunk, rows, states)


def _results(dataset: Any) -> Iterator["pa.Table"]:
    """Result of each chunk, as soon as it is finished. A block is never empty, and contains one chunk."""
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for chunk in batch[CHUNK].unique().to_pylist():
                yield batch.filter(pa.compute.equal(batch[CHUNK], chunk))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()
        raise RuntimeError(
            f"Ray failed: {type(error).__name__}: {reason[-1] if reason else ''} The finished chunks are kept; run "
            "the same prediction again to resume."
        ) from error


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """Connect to Ray, and keep it quiet. A cluster that was started here is stopped at the end."""
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=standard_logging.ERROR)
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    logger = standard_logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(standard_logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = shown
        logger.setLevel(level)
        if started:
            ray.shutdown()


def _resources(num_actors: int | None, device: str | None) -> tuple[int, dict[str, Any], str]:
    """Number of actors, what Ray reserves for each, and their device."""
    found = ray.cluster_resources()
    gpus, cores = int(found.get("GPU", 0)), max(1, int(found.get("CPU", 1)))
    if device is not None and device.startswith("cuda") and not gpus:
        raise ValueError(f"device is {device!r}, but the Ray cluster has no GPU; expected 'cpu'.")
    if gpus and device in (None, "cuda"):
        count = num_actors or gpus
        # More actors than GPUs share them.
        return count, {"num_gpus": min(1.0, gpus / count)}, "cuda"
    count = num_actors or max(1, cores // CORES)
    return count, {"num_cpus": max(1, cores // count)}, device or "cpu"


__all__ = ["predict_with_ray"]
