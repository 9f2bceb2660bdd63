"""The chunks that one process predicts: read images, run the model, decide, hand over to the writers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig
from ..models.vip2clip.decision_vip2clip import keep_large_regions, min_region_pixels, p_value
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.distributed import world
from .folder import PredictionFolder
from .images import DatasetImages, FolderImages
from .names import Names, as_text
from .writer import ImageWriter, reason_of


def predict_chunks(
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
            ImageWriter(images, names, image_processor, folder.path, heatmaps, maps) as writer,
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
            return position, None, reason_of(error)
        if self.image_processor is None:
            return position, photo, None
        return position, self.image_processor(photo, return_tensors="pt")["pixel_values"][0], None


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


__all__ = ["predict_chunks"]
