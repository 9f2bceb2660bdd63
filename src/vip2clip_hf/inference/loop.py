"""Prediction loop of one process: read images, run the model, decide, and pass maps to the writer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..models.vip2clip.fingerprint_vip2clip import is_calibrated
from ..models.vip2clip.image_loading_vip2clip import DEFAULT_TIMEOUT
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_inputs_vip2clip import load_with_tiles
from ..utils.contents import UNREADABLE, FileState, read_image_bytes
from ..utils.distributed import world
from .folder import PredictionFolder
from .images import DatasetImages, FolderImages
from .names import Names, as_text
from .writer import ImageWriter, reason_of


Item = tuple[int, torch.Tensor | Image.Image | None, str | None, FileState]


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
    names, tiled, calibrated = folder.names, bool(settings["tile_size"]), is_calibrated(model, settings)
    reading = detector.reading_options()
    batches = _Batches(folder, chunks, batch_size)
    loader = torch.utils.data.DataLoader(
        _Images(images, names, None if tiled else image_processor, reading, settings),
        batch_sampler=batches,
        collate_fn=_collate,
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
                            found = [detector.decision_map(image) for image in batch]
                            outputs = [
                                {
                                    "scores": torch.tensor([one["score"]]),
                                    "anomaly_maps": torch.from_numpy(one["anomaly_map"])[None],
                                }
                                for one in found
                            ]
                        else:
                            pixel_values = batch.to(model.device, non_blocking=True)
                            outputs = [model(pixel_values=pixel_values, top_k=settings["top_k"])]
                        results = [
                            result
                            for one in outputs
                            for result in image_processor.post_process_anomaly_detection(
                                one,
                                threshold=threshold,
                                id2label=model.config.id2label,
                                decision=detector.decision,
                                calibrated=calibrated,
                            )
                        ]
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


def as_row(result: dict[str, Any]) -> dict[str, Any]:
    """
    Convert a result of post-processing to the columns of the table.

    Args:
        result (`dict[str, Any]`): result for an image at the size of the model.

    Returns:
        `dict[str, Any]`: `score`, `label`, `anomalous_area` and, from a calibrated checkpoint, `p_value`.
    """
    row = {name: result[name] for name in ("score", "label", "p_value") if result.get(name) is not None}
    return {**row, "anomalous_area": float(result["mask"].cpu().numpy().mean())}


class _Images(torch.utils.data.Dataset):
    """
    Images by position.

    An item contains the position, the pixel values (the image itself if there is no image processor; None if it cannot
    be read), the reason if it cannot be read, and the state of its file.
    """

    def __init__(
        self,
        images: FolderImages | DatasetImages,
        names: Names,
        image_processor: ViP2ClipImageProcessor | None,
        reading: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        self.images, self.names, self.image_processor = images, names, image_processor
        self.reading, self.settings = reading, settings
        self.max_pixels = Image.MAX_IMAGE_PIXELS  # spawned workers start with the default of Pillow

    def __getitem__(self, position: int) -> Item:
        Image.MAX_IMAGE_PIXELS = self.max_pixels
        state = FileState(UNREADABLE)
        try:
            # The same bytes are hashed and scored.
            source, state = read_image_bytes(self.images.image(position, self.names[position]))
            image, _ = load_with_tiles(source, DEFAULT_TIMEOUT, self.reading, self.settings)
        except (OSError, ValueError) as error:
            return position, None, reason_of(error), state
        if self.image_processor is None:
            return position, image, None, state
        return position, self.image_processor(image, return_tensors="pt")["pixel_values"][0], None, state


def _collate(
    items: Sequence[Item],
) -> tuple[list[int], torch.Tensor | list[Image.Image], list[str | None], list[FileState]]:
    positions, images, errors, states = zip(*items)
    readable = [image for image in images if image is not None]
    batch = torch.stack(readable) if readable and isinstance(readable[0], torch.Tensor) else readable
    return list(positions), batch, list(errors), list(states)


class _Batches:
    """Batches of positions, created on demand. No batch spans two chunks."""

    def __init__(self, folder: PredictionFolder, chunks: Sequence[int], batch_size: int) -> None:
        unknown = {chunk: folder.unknown(chunk) for chunk in chunks}
        self.finished = [chunk for chunk, positions in unknown.items() if not positions]
        # Position of the last image to predict, by chunk.
        self.last = {chunk: positions[-1] for chunk, positions in unknown.items() if positions}
        self._chunks = [positions for positions in unknown.values() if positions]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(-(-len(chunk) // self._batch_size) for chunk in self._chunks)

    def __iter__(self) -> Iterator[list[int]]:
        for chunk in self._chunks:
            for start in range(0, len(chunk), self._batch_size):
                yield list(chunk[start : start + self._batch_size])


__all__ = ["as_row", "predict_chunks"]
