"""`OnnxDetector`: the anomaly detection pipeline on an exported graph, without torch."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..models.vip2clip.arguments_vip2clip import (
    call_arguments,
    label_names,
    loading_arguments,
    threshold_pair,
)
from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.decision_vip2clip import as_result, decide, find_regions
from ..models.vip2clip.heatmap_vip2clip import draw_heatmap
from ..models.vip2clip.image_loading_vip2clip import DEFAULT_TIMEOUT
from ..models.vip2clip.pipeline_inputs_vip2clip import ReadsPhotos, Rows, as_inputs, chosen_reading, load_with_tiles
from ..models.vip2clip.pipeline_steps_vip2clip import (
    bank_of,
    decision_of,
    forward_tiles,
    score_settings,
    warn_about_references,
    zero_shot_settings,
)
from ..models.vip2clip.results_vip2clip import AnomalyDetectionResult
from ..models.vip2clip.tensors_vip2clip import is_torch_dataset
from ..models.vip2clip.tiling_vip2clip import Box
from ..utils.versions import SCORING_VERSION
from .engines import open_engine
from .exported import checksum_of_export, read_export


@dataclass(frozen=True)
class PreparedPhoto:
    """
    An image that is ready for the graph.

    Args:
        size (`tuple[int, int]`): height and width of the image.
        image (`PIL.Image.Image`, *optional*): the image in mode RGB, if it has tiles or for a heatmap.
        boxes (`list[tuple[int, int, int, int]]`): tiles as `(left, top, right, bottom)`, empty without tiling.
        values (`np.ndarray` of shape `(1, 3, image_size, image_size)`, *optional*): float32, without tiling.
    """

    size: tuple[int, int]
    image: Image.Image | None
    boxes: list[Box]
    values: np.ndarray | None


class OnnxDetector(ReadsPhotos):
    """
    Detect anomalies with an exported model, without torch and transformers.

    Takes the same images and call arguments as [`AnomalyDetectionPipeline`] and returns the same results. Top-k and
    the references are constants of the graph, so `top_k` can only be that of the export, and `references` only
    `"auto"` or `None`, for results without them.

    Args:
        folder (`str` or `os.PathLike`):
            Folder that `vip2clip export` or [`export_onnx`] has written.
        engine (`str`, defaults to `"onnxruntime"`):
            Program that runs the graph: `"onnxruntime"` or `"openvino"`.
        device (`str`, defaults to `"cpu"`):
            Device of the engine, such as `"cpu"`, `"cuda"` (onnxruntime-gpu) or `"gpu"` (OpenVINO).
        threads (`int`, *optional*):
            Number of threads of the engine. By default, one for each core.
        batch_size (`int`, defaults to 1):
            Number of images in a batch.
        options:
            Defaults of the call arguments `threshold`, `top_k`, `heatmap`, `regions`, `tile_size`, `tile_overlap`,
            `timeout`, `bit_depth`, `page`, `channel_order` and `references`, see [`AnomalyDetectionPipeline`].

    Raises:
        ImportError: if the package of the engine is not installed.
        OSError: if the folder is not an export, or a file is missing or damaged.
        TypeError: if a call argument is unknown.
        ValueError: if an argument is out of range, or the device is not available.

    Example:

    ```python
    >>> from vip2clip_hf.runtime import OnnxDetector

    >>> detector = OnnxDetector("exported")
    >>> result = detector("photo.jpg", regions=True)
    >>> result["score"], result["label"], result["regions"]
    ```
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        engine: str = "onnxruntime",
        device: str = "cpu",
        threads: int | None = None,
        batch_size: int = 1,
        **options: Any,
    ) -> None:
        self._path, self.model, self.preparation = read_export(folder)
        self._options = self._checked(options)
        self._batch_size: int = loading_arguments({"batch_size": batch_size})["batch_size"]
        self._engine_name = engine
        self.engine = open_engine(self._path, engine, device, threads)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.engine).__name__}, image_size={self.model.config.image_size})"

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """
        Detect anomalies in one or more images.

        Args:
            inputs: an image or several images, see [`AnomalyDetectionPipeline.__call__`].
            batch_size (`int`, *optional*): number of images in a batch. By default, that of the detector.
            options: call arguments, see [`OnnxDetector`].

        Returns:
            [`AnomalyDetectionResult`] for one image, a list of them for a list, folder or array, and an iterator of
            them for a generator or dataset.

        Raises:
            OSError: if an image cannot be read.
            TypeError: if a call argument is unknown.
            ValueError: if the input is of another kind, a folder or list contains no images, or a call argument is out
                of range.
        """
        given = {**self._options, **self._checked(options)}
        size = loading_arguments({"batch_size": batch_size}).get("batch_size") or self._batch_size
        self._score_settings(given)  # an error of settings is not one of an image
        inputs = as_inputs(inputs)
        if isinstance(inputs, list):
            return list(self._results(inputs, size, given))
        if isinstance(inputs, (Generator, Rows)) or is_torch_dataset(inputs):
            return self._results(_items(inputs), size, given)
        return next(self._results([inputs], 1, given))

    @property
    def decision(self) -> DecisionConfig:
        """Thresholds, tiles and calibration: those of the export, if they belong to the references in use."""
        return decision_of(self.model, self._options)[0]

    def score_settings(self) -> dict[str, Any]:
        """
        Return the settings that scores depend on.

        Returns:
            `dict[str, Any]`: `tile_size` (0 without tiling), `tile_overlap`, `top_k` and, with references,
            `references` (their checksum).
        """
        return self._score_settings(self._options)

    def scoring_settings(self, threshold: tuple[float, float]) -> dict[str, Any]:
        """
        Collect everything that the row of an image depends on, except for the image, as for a checkpoint. Reads the
        whole graph.

        Args:
            threshold (`tuple[float, float]`): image and pixel threshold in use.

        Returns:
            `dict[str, Any]`: JSON-serializable settings.
        """
        decision = self.decision
        return {
            "scoring_version": SCORING_VERSION,
            "runtime": self._engine_name,
            "export_sha256": checksum_of_export(self._path),
            "labels": label_names(self.model.config.id2label),
            "image_threshold": threshold[0],
            "pixel_threshold": threshold[1],
            "min_region_area": decision.min_region_area,
            "calibration": decision.checksum() if decision.calibration is not None else None,
            **self.score_settings(),
            **self.reading_options(),
        }

    @property
    def options(self) -> dict[str, Any]:
        """Call arguments that the detector was created with."""
        return dict(self._options)

    # Steps of a call, for programs that collect batches themselves

    def prepare(self, item: Any, *, heatmap: bool = False) -> PreparedPhoto:
        """
        Read an image and prepare it for the graph. Can run in several threads.

        Args:
            item: an image, as in a call of the detector.
            heatmap (`bool`, defaults to `False`): whether a heatmap will be drawn, for which the image is kept.

        Returns:
            [`PreparedPhoto`]: the image, ready for [`OnnxDetector.forward`].

        Raises:
            OSError: if the image cannot be read.
            ValueError: if it cannot be read without more information, or has too many tiles.
        """
        return self._prepare(item, {**self._options, "heatmap": heatmap})

    def forward(self, photos: Sequence[PreparedPhoto]) -> list[tuple[float, np.ndarray]]:
        """
        Compute the scores and maps of a batch.

        Args:
            photos (`Sequence[PreparedPhoto]`): results of [`OnnxDetector.prepare`].

        Returns:
            `list[tuple[float, np.ndarray]]`: score in [0, 1] and float32 map of each photo, of shape `(image_size,
            image_size)`, or `(height, width)` of a photo with tiles.
        """
        return list(self._forward(photos, self._options))

    def decide(
        self,
        photo: PreparedPhoto,
        score: float,
        anomaly_map: np.ndarray,
        *,
        heatmap: bool = False,
        regions: bool = False,
    ) -> AnomalyDetectionResult:
        """
        Make the result of an image. Can run in several threads.

        Args:
            photo ([`PreparedPhoto`]): result of [`OnnxDetector.prepare`].
            score (`float`), anomaly_map (`np.ndarray`): result of [`OnnxDetector.forward`].
            heatmap, regions (`bool`, default to `False`): see [`OnnxDetector`].

        Returns:
            [`AnomalyDetectionResult`]: the result.

        Raises:
            ValueError: if the score or the map is not finite, or a heatmap is wanted and the image was not kept.
        """
        return self._decide(photo, score, anomaly_map, {**self._options, "heatmap": heatmap, "regions": regions})

    def _photo_options(self) -> dict[str, Any]:
        return {**self.preparation.reading, **self._options}

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        found = call_arguments(options)
        references = found.get("references", "auto")
        if references is not None and not (isinstance(references, str) and references == "auto"):
            raise ValueError(
                f"references is of type {type(references).__name__}; expected 'auto' or None, because references are "
                "constants of the exported graph. Export the checkpoint again with other references."
            )
        if found.get("top_k", self.model.config.top_k) != self.model.config.top_k:
            raise ValueError(
                f"top_k is {found['top_k']}; expected {self.model.config.top_k}, because it is a constant of the "
                "exported graph. Export the checkpoint again with another top_k of its decision."
            )
        return found

    def _score_settings(self, options: dict[str, Any]) -> dict[str, Any]:
        return score_settings(self.model, options)

    def _results(self, inputs: Iterable[Any], size: int, options: dict[str, Any]) -> Iterator[AnomalyDetectionResult]:
        """Compute results batch by batch."""
        batch: list[Any] = []
        for item in inputs:
            batch.append(item)
            if len(batch) == size:
                yield from self._batch(batch, options)
                batch = []
        if batch:
            yield from self._batch(batch, options)

    def _batch(self, items: list[Any], options: dict[str, Any]) -> Iterator[AnomalyDetectionResult]:
        photos = [self._prepare(item, options) for item in items]
        for photo, (score, anomaly_map) in zip(photos, self._forward(photos, options)):
            yield self._decide(photo, score, anomaly_map, options)

    def _prepare(self, item: Any, options: dict[str, Any]) -> PreparedPhoto:
        timeout = options.get("timeout", DEFAULT_TIMEOUT)
        reading = chosen_reading({**self.preparation.reading, **options})
        image, boxes = load_with_tiles(item, timeout, reading, zero_shot_settings(self.model, options))
        values = None if boxes else self.preparation.pixel_values([image])
        kept = image if boxes or options.get("heatmap") else None
        return PreparedPhoto((image.height, image.width), kept, boxes, values)

    def _forward(self, photos: Sequence[PreparedPhoto], options: dict[str, Any]) -> Iterator[tuple[float, np.ndarray]]:
        def run(crops: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
            return self._run(self.preparation.pixel_values(crops), options)

        whole = [photo.values for photo in photos if photo.values is not None]
        scores, maps = self._run(np.concatenate(whole), options) if whole else ((), ())
        computed = zip(scores, maps)
        for photo in photos:
            if photo.image is not None and photo.boxes:
                score, anomaly_map = forward_tiles(run, photo.image, photo.boxes)
            else:
                score, anomaly_map = next(computed)
            yield float(score), anomaly_map

    def _run(self, values: np.ndarray, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Compute scores and maps of prepared images."""
        outputs = self.engine.run(values)
        if self.model.references is not None and bank_of(self.model, options) is None:
            return outputs["zero_shot_scores"], outputs["zero_shot_maps"]
        warn_about_references(outputs)
        return outputs["scores"], outputs["anomaly_maps"]

    def _decide(
        self, photo: PreparedPhoto, score: float, anomaly_map: np.ndarray, options: dict[str, Any]
    ) -> AnomalyDetectionResult:
        if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
            raise ValueError(f"The score ({score}) or the map of an image is not finite. Check the exported graph.")
        decision, calibrated = decision_of(self.model, options)
        threshold = threshold_pair(options.get("threshold"), (decision.image_threshold, decision.pixel_threshold))
        found = decide(score, anomaly_map, decision, size=photo.size, threshold=threshold, calibrated=calibrated)
        result = AnomalyDetectionResult(as_result(score, found, label_names(self.model.config.id2label), decision))
        if options.get("regions"):
            result["regions"] = find_regions(found.anomaly_map, found.mask)
        if options.get("heatmap"):
            if photo.image is None:
                raise ValueError("The image was prepared without heatmap=True, so its heatmap cannot be drawn.")
            result["heatmap"] = draw_heatmap(photo.image, found.anomaly_map)
        return result


def _items(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Generator):
        yield from inputs
        return
    for position in range(len(inputs)):
        yield inputs[position]


__all__ = ["OnnxDetector", "PreparedPhoto"]
