"""Prediction loop of one process: read images, run the model, decide, and pass maps to the writer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..models.vip2clip.fingerprint_vip2clip import is_calibrated
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import warn_about_references
from ..utils.distributed import world
from ..utils.file_state import FileState
from ..utils.remote import StoreError
from .batches import PredictionBatches, PredictionImages, collate_images
from .folder import PredictionFolder
from .images import Images
from .names import Names, SomeNames, as_text
from .single import as_row, score_image
from .writer import ImageWriter


class BatchScorer:
    """
    Score batches of images and decide. The engines share it, so their rows are the same.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        threshold (`float` or `tuple`, *optional*): see [`predict_to_folder`].
    """

    def __init__(
        self,
        detector: AnomalyDetectionPipeline,
        threshold: float | tuple[float | None, float | None] | None,
    ) -> None:
        self.detector, self.threshold = detector, threshold
        self.settings = detector.score_settings()
        self.tiled = bool(self.settings["tile_size"])
        self.calibrated = is_calibrated(detector.model, self.settings, detector.decision)

    def images(self, images: Images, names: Names | SomeNames) -> PredictionImages:
        """
        Prepare to read images.

        Args:
            images ([`Images`]): all images of the prediction.
            names ([`Names`] or [`SomeNames`]): their names.

        Returns:
            [`PredictionImages`]: dataset by position.
        """
        processor = None if self.tiled else self.detector.image_processor
        return PredictionImages(images, names, processor, self.detector.reading_options(), self.settings)

    def __call__(self, batch: Any, ids: Sequence[str]) -> list[dict[str, Any]]:
        """
        Score the readable images of a batch.

        Args:
            batch (`torch.Tensor` or `list[PIL.Image.Image]`): images, see [`collate_images`].
            ids (`Sequence[str]`): their ids, for the error message.

        Returns:
            `list[dict]`: results at the size of the model, or of the image if it is split into tiles.

        Raises:
            ValueError: if scores are not finite. The message names the images of the batch.
        """
        model, settings = self.detector.model, self.settings
        try:
            if self.tiled:
                return [score_image(self.detector, image, self.threshold) for image in batch]
            pixel_values = batch.to(model.device, non_blocking=True)
            references = self.detector.references
            outputs = model(pixel_values=pixel_values, top_k=settings["top_k"], references=references)
            warn_about_references(outputs)
            return self.detector.image_processor.post_process_anomaly_detection(
                outputs,
                threshold=self.threshold,
                id2label=model.config.id2label,
                decision=self.detector.decision,
                calibrated=self.calibrated,
            )
        except ValueError as error:
            raise ValueError(f"{error} Images in this batch: {list(ids)}.") from error


def _batches(loader: Any) -> Iterator[Any]:
    """Batches of a loader. Workers add their traceback to the message of an error, which is removed here."""
    try:
        yield from loader
    except StoreError as error:
        raise StoreError(str(error).strip().splitlines()[-1].rpartition("StoreError: ")[2]) from error


def predict_chunks(
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
) -> None:
    """
    Predict the chunks of this process and write their parts of the table.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        images ([`Images`]): all images of the prediction.
        folder ([`PredictionFolder`]): output folder, open.
        chunks (`Sequence[int]`): chunks to predict.
        num_done (`int`): number of images predicted earlier, for the progress bar.
        batch_size, num_workers, threshold, heatmaps, maps, progress: see [`predict_to_folder`].

    Raises:
        OSError: if a file cannot be written.
        ValueError: if scores are not finite. The message names the images of the batch.
    """
    model, names = detector.model, folder.names
    scorer = BatchScorer(detector, threshold)
    batches = PredictionBatches(folder, chunks, batch_size, num_workers if images.together else 1)
    loader = torch.utils.data.DataLoader(
        scorer.images(images, names),
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
            ImageWriter(
                images, names, detector.image_processor, folder.new, heatmaps, maps, detector.reading_options()
            ) as writer,
        ):
            # By position, until a chunk is complete.
            rows: dict[int, dict[str, Any]] = {}
            states: dict[int, FileState] = {}
            for chunk in batches.finished:  # all images are known
                folder.write_part(chunk, {}, {})
            for positions, batch, errors, found_states in _batches(loader):
                states.update(zip(positions, found_states))
                rows.update((position, {"error": reason}) for position, reason in zip(positions, errors))
                readable = [position for position, reason in zip(positions, errors) if reason is None]
                if readable:
                    results = scorer(batch, [as_text(names[position]) for position in readable])
                    for position, result in zip(readable, results):
                        rows[position].update(as_row(result))
                        writer.add(position, result["anomaly_map"])
                chunk = positions[0] // folder.chunk_size
                if positions[-1] == batches.last[chunk]:
                    for position, reason in writer.wait().items():
                        rows[position] = {"error": reason}
                    inside = [position for position in folder.positions(chunk) if position in rows]
                    folder.write_part(
                        chunk,
                        {position: rows.pop(position) for position in inside},
                        {position: states.pop(position) for position in inside},
                    )
                    if world_size > 1 and not bar.disable:  # includes the other processes
                        bar.update(folder.num_done() - bar.n)
                if world_size == 1:
                    bar.update(len(positions))
    finally:
        model.train(was_training)


__all__ = ["BatchScorer", "predict_chunks"]
