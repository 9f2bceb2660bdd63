"""Prediction loop of one process: read images, run the model, decide, and pass maps to the writer."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..models.vip2clip.fingerprint_vip2clip import is_calibrated
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import warn_about_references
from ..utils.distributed import world
from ..utils.file_state import FileState
from .batches import PredictionBatches, PredictionImages, collate_images
from .folder import PredictionFolder
from .images import DatasetImages, FolderImages
from .names import as_text
from .single import as_row, score_image
from .writer import ImageWriter


def predict_chunks(
    detector: AnomalyDetectionPipeline,
    images: FolderImages | DatasetImages,
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
) -> None:
    """
    Predict the chunks of this process and write their parts of the table.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        images ([`FolderImages`] or [`DatasetImages`]): all images of the prediction.
        folder ([`PredictionFolder`]): output folder, open.
        chunks (`Sequence[int]`): chunks to predict.
        num_done (`int`): number of images predicted earlier, for the progress bar.
        batch_size, num_workers, threshold, heatmaps, maps, progress: see [`predict_to_folder`].

    Raises:
        OSError: if a file cannot be written.
        ValueError: if scores are not finite. The message names the images of the batch.
    """
    model, image_processor, settings = detector.model, detector.image_processor, detector.score_settings()
    names, tiled, decision = folder.names, bool(settings["tile_size"]), detector.decision
    calibrated = is_calibrated(model, settings, decision)
    reading = detector.reading_options()
    batches = PredictionBatches(folder, chunks, batch_size)
    loader = torch.utils.data.DataLoader(
        PredictionImages(images, names, None if tiled else image_processor, reading, settings),
        batch_sampler=batches,
        collate_fn=collate_images,
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
    )
    rank, world_size = world()
    bar = tqdm(
        total=folder.num_images, initial=num_done, desc="predicting", unit="image", disable=not progress or rank > 0
    )
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            bar,
            ImageWriter(images, names, image_processor, folder.new, heatmaps, maps, reading) as writer,
        ):
            rows: dict[int, dict[str, Any]] = {}
            states: dict[int, FileState] = {}
            for chunk in batches.finished:  # all images are known
                folder.write_part(chunk, {}, {})
            for positions, batch, errors, found_states in loader:
                states.update(zip(positions, found_states))
                rows.update((position, {"error": reason}) for position, reason in zip(positions, errors))
                readable = [position for position, reason in zip(positions, errors) if reason is None]
                if readable:
                    try:
                        if tiled:
                            results = [score_image(detector, image, threshold) for image in batch]
                        else:
                            pixel_values = batch.to(model.device, non_blocking=True)
                            outputs = model(
                                pixel_values=pixel_values,
                                top_k=settings["top_k"],
                                references=detector.references,
                            )
                            warn_about_references(outputs)
                            results = image_processor.post_process_anomaly_detection(
                                outputs,
                                threshold=threshold,
                                id2label=model.config.id2label,
                                decision=decision,
                                calibrated=calibrated,
                            )
                    except ValueError as error:
                        ids = [as_text(names[position]) for position in readable]
                        raise ValueError(f"{error} Images in this batch: {ids}.") from error
                    for position, result in zip(readable, results):
                        rows[position].update(as_row(result))
                        writer.add(position, result["anomaly_map"])
                chunk = positions[0] // folder.chunk_size
                if positions[-1] == batches.last[chunk]:
                    for position, reason in writer.wait().items():
                        rows[position] = {"error": reason}
                    folder.write_part(chunk, rows, states)
                    rows, states = {}, {}
                    if world_size > 1 and not bar.disable:  # includes the other processes
                        bar.update(folder.num_done() - bar.n)
                if world_size == 1:
                    bar.update(len(positions))
    finally:
        model.train(was_training)


__all__ = ["predict_chunks"]
