"""Predictions for any number of images, written to a folder as they come: a table, and maps and heatmaps when asked.

The images are cut into chunks of a fixed size. A chunk is what a process takes, and what is there or not there after a
stop. Nothing that is computed goes beyond a chunk, so that the table does not depend on who took which and when.
"""

import contextlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from .bulk_images import DatasetImages, FolderImages, Names, as_images, as_text, checksum, find_source
from .calibration_vip2clip import keep_large_regions, min_region_pixels, p_value
from .configuration_vip2clip import ViP2ClipConfig
from .distributed import from_all, from_first, world
from .files import write_atomically
from .image_processing_vip2clip import LABELS, ViP2ClipImageProcessor, load_image
from .modeling_vip2clip import ViP2ClipForAnomalyDetection
from .pipeline_anomaly_detection import AnomalyDetectionPipeline, draw_heatmap
from .runs import load_checkpoint, model_checksum, name_of, to_json, versions


try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError("Bulk prediction needs pyarrow: pip install 'vip2clip_hf[predict]'.") from error


logger = logging.get_logger(__name__)
TABLE_FILE, SETTINGS_FILE, PROGRESS_FOLDER = "predictions.parquet", "settings.json", ".progress"
# Folders for what is written for single images, and the extensions there.
IMAGE_FOLDERS = {"heatmaps": ".png", "maps": ".npy"}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("score", pa.float32()),
        ("label", pa.string()),
        ("p_value", pa.float32()),
        ("anomalous_area", pa.float32()),
        ("error", pa.string()),
    ]
)
ROWS_PER_GROUP = 65536
# Heatmaps that are drawn at the same time, and maps that may wait for it.
WRITERS, WAITING = 4, 16
_PART = re.compile(r"part-(\d+)\.parquet")


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
            _check_room(folder.path, folder.num_images - before, model.config.image_size)
        options = {"batch_size": batch_size, "num_workers": num_workers, "threshold": threshold}
        options.update(heatmaps=heatmaps, maps=maps, progress=progress)
        _predict(detector, images, folder, missing[world()[0] :: world()[1]], before, **options)
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
            See [`vip2clip_hf.runs.load_checkpoint`].
        compile (`bool`, defaults to `False`):
            Whether to compile the vision tower. Takes a while, and pays for many images on a GPU.
        name (`str`, *optional*):
            What to call it in what is written; the name of the checkpoint, when not given.

    Raises:
        ImportError: accelerate is not installed.
        OSError, ValueError, RuntimeError: see [`predict_to_folder`] and the model's `from_pretrained`.
    """
    model, image_processor = load_checkpoint(
        checkpoint, device=device, dtype=dtype, backbone=backbone, extra="predict"
    )
    if compile:
        model.get_vision_features = torch.compile(model.get_vision_features)
    name = name_of(checkpoint) if name is None else name
    return predict_to_folder(model, image_processor, source, output, name=name, **options)


def _predict(
    detector: AnomalyDetectionPipeline,
    images: FolderImages | DatasetImages,
    folder: "PredictionFolder",
    chunks: Sequence[int],
    before: int,
    *,
    batch_size: int,
    num_workers: int,
    threshold: float | tuple[float, float],
    heatmaps: bool,
    maps: bool,
    progress: bool,
):
    """The chunks of this process."""
    model, image_processor, settings = detector.model, detector.image_processor, detector.score_settings()
    names, decision, tiled = folder.names, _Decision(model.config, settings), bool(settings["tile_size"])
    batches = _Batches(folder, chunks, batch_size)
    loader = torch.utils.data.DataLoader(
        _Photos(images, names, None if tiled else image_processor),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
    )
    rank, world_size = world()
    bar = tqdm(
        total=folder.num_images, initial=before, desc="predicting", unit="image", disable=not progress or rank > 0
    )
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            bar,
            _ImageWriter(images, names, image_processor, folder.path, heatmaps, maps) as writer,
        ):
            rows: dict[int, dict[str, Any]] = {}
            for positions, photos, errors in loader:
                rows.update((position, {"error": reason}) for position, reason in zip(positions, errors))
                readable = [position for position, reason in zip(positions, errors) if reason is None]
                if readable:
                    try:
                        if tiled:
                            found = [detector.decision_map(photo) for photo in photos]
                            outputs = [
                                {
                                    "scores": torch.tensor([one["score"]]),
                                    "anomaly_maps": torch.from_numpy(one["anomaly_map"])[None],
                                }
                                for one in found
                            ]
                        else:
                            pixel_values = photos.to(model.device, non_blocking=True)
                            outputs = [model(pixel_values=pixel_values, top_k=settings["top_k"])]
                        results = [
                            result
                            for one in outputs
                            for result in image_processor.post_process_anomaly_detection(one, threshold=threshold)
                        ]
                    except ValueError as error:
                        ids = [as_text(names[position]) for position in readable]
                        raise ValueError(f"{error} The images of the batch are {ids}.") from error
                    for position, result in zip(readable, results):
                        rows[position].update(decision.row(result))
                        writer.add(position, result["anomaly_map"])
                chunk = positions[0] // folder.chunk_size
                if positions[-1] == folder.positions(chunk)[-1]:
                    for position, reason in writer.wait().items():
                        rows[position] = {"error": reason}
                    folder.write_part(chunk, [rows[position] for position in folder.positions(chunk)])
                    rows = {}
                    if world_size > 1 and not bar.disable:  # what the others have done as well
                        bar.update(folder.num_done() - bar.n)
                if world_size == 1:
                    bar.update(len(positions))
    finally:
        model.train(was_training)


class _Decision:
    """What the table says of an image."""

    def __init__(self, config: ViP2ClipConfig, settings: dict[str, Any]):
        calibration = config.calibration or {}
        self.min_region_area = (calibration.get("pixel") or {}).get("min_region_area", 0)
        stored = calibration.get("image") or {}
        same = calibration.get("settings") == settings
        self.num_images = stored.get("num_images")
        self.scores = np.asarray(stored["scores"]) if same and stored.get("scores") else None

    def row(self, result: dict[str, Any]) -> dict[str, Any]:
        mask = result["mask"].cpu().numpy()
        if self.min_region_area:
            mask = keep_large_regions(mask, min_region_pixels(mask.shape, self.min_region_area))
        found = {"score": result["score"], "label": result["label"], "anomalous_area": float(mask.mean())}
        if self.scores is not None:
            found["p_value"] = p_value(result["score"], self.scores, self.num_images)
        return found


class PredictionFolder:
    """
    The folder of a prediction, and how far it has come: `.progress/` holds the names of all images and, for every
    chunk that is done, a part of the table.

    Args:
        path (`Path`): the folder.
        chunk_size (`int`): images of a chunk.
    """

    def __init__(self, path: Path, chunk_size: int):
        self.path, self.chunk_size = path, chunk_size
        self.table, self.progress = path / TABLE_FILE, path / PROGRESS_FOLDER
        self.names = Names(self.progress / "images.arrow")
        self.num_images = 0
        self._lock: FileLock | None = None

    # The first process

    def prepare(
        self, images: FolderImages | DatasetImages, settings: dict[str, Any], more: dict[str, Any], overwrite: bool
    ) -> int:
        """
        Make the folder, or take up one with these settings.

        Args:
            images: what is to be predicted.
            settings (`dict`): have to be the same for going on.
            more (`dict`): is written with them.
            overwrite (`bool`): start anew.

        Returns:
            `int`: images of a prediction that is finished, 0 where there is something to do.

        Raises:
            OSError: a folder with something else, another prediction, or one that another program works on.
        """
        found = self._found()
        names = images.names()
        settings = {**settings, "num_images": len(names), "ids_sha256": checksum(names)}
        settings = json.loads(json.dumps(settings))  # as it is read again
        if found is not None and not overwrite:
            different = [key for key, value in settings.items() if found.get(key) != value]
            if different:
                raise OSError(
                    f"{str(self.path)!r} holds a prediction with {_explain(different, found, settings)}; choose "
                    "another folder, or overwrite it (--overwrite)."
                )
            if self.table.exists():
                shutil.rmtree(self.progress, ignore_errors=True)
                return len(names)
            for key, value in more["versions"].items():
                if found.get("versions", {}).get(key) != value:
                    logger.warning(
                        f"{self.path} was begun with another version of {key}; what is left may round differently."
                    )
        self.progress.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.progress / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(
                f"Another program is predicting into {str(self.path)!r}; wait for it or choose another folder."
            ) from error
        self._lock = lock
        if found is not None and overwrite:
            self._delete(found)
            found = None
        if found is None:
            write_atomically(self.path / SETTINGS_FILE, to_json({**settings, **more}))
        Names.write(self.progress / "images.arrow", names)
        return 0

    def _found(self) -> dict[str, Any] | None:
        """The settings of the prediction that is there."""
        if self.path.exists() and not self.path.is_dir():
            raise OSError(f"{str(self.path)!r} is a file; expected a folder or a path that does not exist yet.")
        file = self.path / SETTINGS_FILE
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("kind") == "prediction":
                return found
        # Killed in the first moment there is nothing but a beginning.
        begun = {PROGRESS_FOLDER, f".{SETTINGS_FILE}.tmp"}
        if self.path.exists() and any(entry.name not in begun for entry in self.path.iterdir()):
            raise OSError(f"{str(self.path)!r} is not empty and holds no prediction; choose another folder.")
        return None

    def _delete(self, found: dict[str, Any]):
        """What a prediction with these settings writes, and nothing else."""
        self.table.unlink(missing_ok=True)
        for part in self.progress.iterdir():
            if part.name != "lock":
                part.unlink()
        for kind, extension in IMAGE_FOLDERS.items():
            if not found.get(kind):
                continue
            for folder, _, files in os.walk(self.path / kind, topdown=False):
                for file in files:
                    if file.endswith(extension) or re.fullmatch(r"\.\d+\.tmp", file):
                        os.unlink(os.path.join(folder, file))
                with contextlib.suppress(OSError):  # something else lies there
                    os.rmdir(folder)

    def finish(self):
        """One table of all parts, read and written bit by bit; the parts are deleted."""
        missing = self.missing()
        if missing:
            raise OSError(
                f"{len(missing)} parts are missing in {str(self.progress)!r}; expected a folder that all processes "
                "and machines see. Start again with the same arguments."
            )
        content = json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8"))
        schema = SCHEMA.with_metadata({"vip2clip_hf": json.dumps(content, ensure_ascii=False)})
        staged = self.progress / f"{TABLE_FILE}.tmp"
        parts = [self._part(chunk) for chunk in range(self.num_chunks)]
        step = max(1, ROWS_PER_GROUP // self.chunk_size)
        with open(staged, "wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for start in range(0, len(parts), step):
                    group = pa.concat_tables(pq.ParquetFile(part).read() for part in parts[start : start + step])
                    writer.write_table(group.replace_schema_metadata(schema.metadata), row_group_size=len(group))
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, self.table)
        self.release()
        shutil.rmtree(self.progress, ignore_errors=True)

    def summary(self) -> dict[str, Any]:
        """Counts of the finished table."""
        counts = {"num_images": 0, "num_normal": 0, "num_anomalous": 0, "num_unreadable": 0}
        with pq.ParquetFile(self.table) as file:
            for batch in file.iter_batches(columns=["label", "error"]):
                counts["num_images"] += len(batch)
                counts["num_unreadable"] += len(batch) - batch["error"].null_count
                for label in LABELS:
                    counts[f"num_{label}"] += pc.sum(pc.equal(batch["label"], label)).as_py() or 0
        return {**counts, "table": str(self.table)}

    # All processes

    def open(self):
        """
        Raises:
            OSError: not all processes see the folder.
        """
        if not all(from_all((self.progress / "images.arrow").exists())):
            raise OSError(f"Expected a folder {str(self.path)!r} that all processes and machines see.")
        self.num_images = len(self.names)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_images // self.chunk_size)

    def positions(self, chunk: int) -> range:
        """Of the images of a chunk."""
        return range(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.num_images))

    def _part(self, chunk: int) -> Path:
        return self.progress / f"part-{chunk:09d}.parquet"

    def _chunks_there(self) -> Iterator[int]:
        with os.scandir(self.progress) as entries:
            for entry in entries:
                if match := _PART.fullmatch(entry.name):
                    yield int(match[1])

    def missing(self) -> list[int]:
        """Chunks that are not done."""
        left = np.ones(self.num_chunks, dtype=bool)
        for chunk in self._chunks_there():
            with contextlib.suppress(OSError, pa.ArrowInvalid):  # a file system that lost its content
                left[chunk] = pq.read_metadata(self._part(chunk)).num_rows != len(self.positions(chunk))
        return np.flatnonzero(left).tolist()

    def num_done(self) -> int:
        """Images of the chunks that are done."""
        return sum(len(self.positions(chunk)) for chunk in self._chunks_there())

    def write_part(self, chunk: int, rows: Sequence[dict[str, Any]]):
        columns = {"id": [as_text(self.names[position]) for position in self.positions(chunk)]}
        columns.update({name: [row.get(name) for row in rows] for name in SCHEMA.names if name != "id"})
        part = self._part(chunk)
        staged = part.with_name(f".{part.name}.tmp")
        pq.write_table(pa.table(columns, schema=SCHEMA), staged)
        os.replace(staged, part)

    def release(self):
        self.names.close()
        if self._lock is not None:
            self._lock.release()


def _explain(different: list[str], found: dict[str, Any], settings: dict[str, Any]) -> str:
    texts = []
    for key in different:
        if key == "ids_sha256":
            texts.append(f"another list of images ({found.get('num_images')} then, {settings['num_images']} now)")
        elif key != "num_images":
            then, now = json.dumps(found.get(key)), json.dumps(settings[key])
            texts.append(f"another {key}" + (f" ({then} then, {now} now)" if len(then + now) < 400 else ""))
    return " and ".join(texts)


def _check_room(path: Path, num_maps: int, size: int):
    """
    Raises:
        OSError: the maps that are left to write do not fit on the disk.
    """
    needed, free = 2 * size * size * num_maps, shutil.disk_usage(path).free
    if needed > free:
        raise OSError(
            f"The maps need {needed / 1e9:.1f} GB in {str(path)!r}, where {free / 1e9:.1f} GB are free; choose "
            "another disk, or leave the maps out."
        )


class _Photos(torch.utils.data.Dataset):
    """Images by position, as the model takes them (without an image processor as photos), or why they cannot be
    read."""

    def __init__(
        self, images: FolderImages | DatasetImages, names: Names, image_processor: ViP2ClipImageProcessor | None
    ):
        self.images, self.names, self.image_processor = images, names, image_processor
        self.max_pixels = Image.MAX_IMAGE_PIXELS  # which workers of their own interpreter do not know of

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor | Image.Image | None, str | None]:
        Image.MAX_IMAGE_PIXELS = self.max_pixels
        try:
            photo = load_image(self.images.image(position, self.names[position]))
        except (OSError, ValueError) as error:
            return position, None, _reason(error)
        if self.image_processor is None:
            return position, photo, None
        return position, self.image_processor(photo, return_tensors="pt")["pixel_values"][0], None


def _reason(error: Exception) -> str:
    return str(error).encode("utf-8", "backslashreplace").decode()


def _collate(
    items: Sequence[tuple[int, torch.Tensor | Image.Image | None, str | None]],
) -> tuple[list[int], torch.Tensor | list[Image.Image], list[str | None]]:
    positions, images, errors = zip(*items)
    readable = [image for image in images if image is not None]
    if readable and isinstance(readable[0], torch.Tensor):
        readable = torch.stack(readable)
    return list(positions), readable, list(errors)


class _Batches:
    """Positions, batch by batch; none goes beyond its chunk. Made as they are needed, not all at once."""

    def __init__(self, folder: PredictionFolder, chunks: Sequence[int], batch_size: int):
        self._chunks = [folder.positions(chunk) for chunk in chunks]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(-(-len(chunk) // self._batch_size) for chunk in self._chunks)

    def __iter__(self) -> Iterator[list[int]]:
        for chunk in self._chunks:
            for start in range(0, len(chunk), self._batch_size):
                yield list(chunk[start : start + self._batch_size])


class _ImageWriter:
    """
    Writes heatmaps and maps beside the model, which waits only when too many have gathered. Photos are opened again
    for drawing, so that none has to be kept.
    """

    def __init__(
        self,
        images: FolderImages | DatasetImages,
        names: Names,
        image_processor: ViP2ClipImageProcessor,
        folder: Path,
        heatmaps: bool,
        maps: bool,
    ):
        self.images, self.names, self.image_processor = images, names, image_processor
        self.folder, self.heatmaps, self.maps = folder, heatmaps, maps
        self._pool = ThreadPoolExecutor(WRITERS)
        self._waiting: deque[tuple[int, Future]] = deque()
        self._failed: dict[int, str] = {}

    def __enter__(self) -> "_ImageWriter":
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)

    def add(self, position: int, anomaly_map: torch.Tensor):
        """The map of an image, of shape `(height, width)`."""
        if not (self.heatmaps or self.maps):
            return
        self._waiting.append((position, self._pool.submit(self._write, position, anomaly_map.cpu())))
        while len(self._waiting) > WAITING:
            self._collect()

    def wait(self) -> dict[int, str]:
        """Until all is written. Images that could not be read again, and why."""
        while self._waiting:
            self._collect()
        failed, self._failed = self._failed, {}
        return failed

    def _collect(self):
        position, future = self._waiting.popleft()
        if (reason := future.result()) is not None:
            self._failed[position] = reason

    def _write(self, position: int, anomaly_map: torch.Tensor) -> str | None:
        name = self.names[position]
        if self.heatmaps:
            try:
                photo = load_image(self.images.image(position, name))
            except (OSError, ValueError) as error:
                return _reason(error)
            (result,) = self.image_processor.post_process_anomaly_detection(
                {"scores": torch.zeros(1), "anomaly_maps": anomaly_map[None]}, [(photo.height, photo.width)]
            )
            picture = draw_heatmap(photo, result["anomaly_map"].numpy())
            self._save("heatmaps", position, name, lambda file: picture.save(file, format="PNG"))
        if self.maps:
            values = anomaly_map.numpy().astype(np.float16)
            self._save("maps", position, name, lambda file: np.save(file, values))
        return None

    def _save(self, kind: str, position: int, name: bytes, save: Callable[[Any], Any]):
        target = Path(f"{self.folder / kind / self.images.file(position, name)}{IMAGE_FOLDERS[kind]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{position}.tmp")
        with open(staged, "wb") as file:
            save(file)
        os.replace(staged, target)


__all__ = ["find_source", "predict_checkpoint", "predict_to_folder"]
