"""Results of the web app: analyse photos once, then apply thresholds and draw without the model."""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.fingerprint_vip2clip import model_fingerprint
from ..models.vip2clip.heatmap_vip2clip import draw_heatmap
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import with_references
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..models.vip2clip.results_vip2clip import AnomalyDetectionResult
from ..utils.pictures import data_uri, resized_map


MAX_IMAGES = 100
MAX_FILE_SIZE = 20.0
# Longer side, in pixels, of the stored anomaly map of a photo that was split into tiles.
TILED_MAP_SIDE = 1024
# Steps of a stored map that is combined with references, so that 16 bits are within 1e-5.
STEPS = 65535
# Longer side, in pixels, of the small picture in the table.
THUMBNAIL_SIDE = 112


@dataclass
class PhotoResult:
    """
    Result of one photo, without its pixels: enough to decide, and with the photo to draw, without the model.

    Args:
        name (`str`): file name to display.
        path (`str`): path of the upload.
        size (`tuple[int, int]`): height and width of the upright photo.
        score (`float`): probability that the photo is anomalous, in [0, 1].
        layer_maps (`np.ndarray` of shape `(num_layers, 2, grid, grid)`, *optional*):
            Float32 in [0, 1]; None if the photo was split into tiles.
        tiled_map (`np.ndarray` of shape `(height, width)`, *optional*):
            Float16 in [0, 1], at most 1024 pixels per side; set only if the photo was split into tiles.
        combined_map (`np.ndarray` of shape `(image_size, image_size)`, *optional*):
            Anomaly map in steps of 1 / 65535; set only with references, without tiles. `layer_maps` are zero-shot.
        references ([`ReferenceBank`], *optional*):
            Photos of good parts that the photo was compared with.
        thumbnail (`str`, defaults to ""):
            Small picture with heatmap, as a `data:` URL.
    """

    name: str
    path: str
    size: tuple[int, int]
    score: float
    layer_maps: np.ndarray | None = None
    tiled_map: np.ndarray | None = None
    combined_map: np.ndarray | None = None
    references: ReferenceBank | None = None
    thumbnail: str = ""

    @property
    def nbytes(self) -> int:
        """Size of the stored maps in bytes."""
        stored = (self.layer_maps, self.tiled_map, self.combined_map)
        return sum(kept.nbytes for kept in stored if kept is not None)


class PhotoInspector:
    """
    Run a pipeline once per photo and compute decisions, masks and heatmaps from the stored results.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline.
        max_images (`int`, defaults to 50): maximum number of photos per call; the rest are reported as skipped.
        max_file_size (`float`, defaults to 20): maximum size of a file in megabytes (1024 x 1024 bytes).

    Raises:
        ValueError: if a limit is not positive, or the references were read with other tiles.
    """

    def __init__(
        self, detector: AnomalyDetectionPipeline, max_images: int = MAX_IMAGES, max_file_size: float = MAX_FILE_SIZE
    ) -> None:
        if max_images < 1:
            raise ValueError(f"max_images is {max_images!r}; expected an integer of at least 1.")
        if not max_file_size > 0:
            raise ValueError(f"max_file_size is {max_file_size!r}; expected a positive number of megabytes.")
        detector.score_settings()  # raises if the references were read with other tiles
        self.detector, self.max_images, self.max_file_size = detector, max_images, max_file_size

    def configured(
        self, references: ReferenceBank | str | None = "auto", decision: DecisionConfig | None = None
    ) -> "PhotoInspector":
        """
        Return an inspector with the same weights and other references or thresholds, such as those of a session.

        Args:
            references ([`ReferenceBank`], *optional*, defaults to `"auto"`): the references, `None`, or `"auto"` for
                those of this inspector.
            decision ([`DecisionConfig`], *optional*): the thresholds. By default, those of this inspector.

        Returns:
            [`PhotoInspector`]: the inspector. This one is not changed.
        """
        found = copy.copy(self)
        found.detector = with_references(self.detector, references)
        if decision is not None:
            model_fingerprint(self.detector.model)  # computed once, and copied
            if found.detector is self.detector:
                found.detector = copy.copy(self.detector)
            model: Any = copy.copy(self.detector.model)  # shares the weights
            model.decision = decision
            found.detector.model = model
        return found

    @property
    def thresholds(self) -> tuple[float, float]:
        """Image and pixel threshold of the checkpoint."""
        return self.detector.decision.image_threshold, self.detector.decision.pixel_threshold

    @property
    def layers(self) -> list[int]:
        """Feature layers of the model. The anomaly map is the mean of their maps."""
        return list(self.detector.model.config.feature_layers)

    @property
    def calibrated(self) -> bool:
        """Whether the checkpoint is calibrated from normal images, so that results have p-values."""
        return self.detector.decision.image_scores is not None

    def read(self, path: str, name: str) -> Image.Image:
        """
        Read an upload as an upright RGB image.

        Args:
            path (`str`): path of the upload.
            name (`str`): file name for error messages.

        Returns:
            `PIL.Image.Image`: the image, rotated as its EXIF data require.

        Raises:
            OSError: if the file has expired, is too large, is damaged or is not an image.
            ValueError: if the image has no pixels, or has values outside the range of 8 or 16 bits.
        """
        try:
            megabytes = os.path.getsize(path) / 1024**2
            if megabytes > self.max_file_size:
                raise OSError(
                    f"{name!r} has {megabytes:.1f} MB; the limit is {self.max_file_size:g} MB. Raise it with "
                    "--max-file-size."
                )
            content = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise OSError(
                f"{name!r} is no longer available; uploads are kept for one hour. Add the photo again."
            ) from error
        # Pass the content: error messages then contain the file name, not the path on the server.
        return self.detector.load({"bytes": content, "path": name})

    def analyse(
        self,
        paths: Sequence[str],
        known: Sequence[PhotoResult] = (),
        on_photo: Callable[[int, str], None] | None = None,
        references: ReferenceBank | str | None = "auto",
    ) -> tuple[list[PhotoResult], list[tuple[str, str]]]:
        """
        Run the model on new uploads. An upload that cannot be read does not stop the others.

        Args:
            paths (`Sequence[str]`): paths of the uploads.
            known (`Sequence[PhotoResult]`, defaults to `()`): earlier results; reused for uploads with the same path.
            on_photo (`Callable[[int, str], None]`, *optional*):
                Called with position and name before the model runs on a photo.
            references ([`ReferenceBank`], *optional*, defaults to `"auto"`):
                Photos of good parts to compare with. `"auto"` uses those of the pipeline, `None` none. Earlier results
                with other references are computed again.

        Returns:
            `tuple[list[PhotoResult], list[tuple[str, str]]]`: the results in upload order, and name and error of each
            upload without a result.
        """
        detector = with_references(self.detector, references)
        analysed = {result.path: result for result in known if result.references is detector.references}
        results: list[PhotoResult] = []
        problems: list[tuple[str, str]] = []
        for position, path in enumerate(paths):
            name = os.path.basename(path)
            if position >= self.max_images:
                photos = "1 photo" if self.max_images == 1 else f"{self.max_images} photos"
                problems.append((name, f"skipped; the limit is {photos}. Raise it with --max-images."))
                continue
            if path not in analysed:
                if on_photo is not None:
                    on_photo(position, name)
                try:
                    analysed[path] = self._analyse(path, name, detector)
                except (OSError, ValueError) as error:
                    problems.append((name, str(error)))
                    continue
            results.append(analysed[path])
        return results, problems

    def _analyse(self, path: str, name: str, detector: AnomalyDetectionPipeline) -> PhotoResult:
        photo = self.read(path, name)
        found = detector.decision_map(photo)
        result = PhotoResult(name, path, (photo.height, photo.width), found["score"], found["layer_maps"])
        result.references = detector.references
        if result.layer_maps is None:
            result.tiled_map = _reduced(found["anomaly_map"])
        combined = result.references is not None and result.layer_maps is not None
        stored = torch.from_numpy(found["anomaly_map"])[None] if combined else self._map(result)
        self._postprocess(result, stored, (1, 1), self.thresholds)  # raises if a value is not finite
        if combined:
            result.combined_map = np.round(found["anomaly_map"].astype(np.float64) * STEPS).astype(np.uint16)
        result.thumbnail = _thumbnail(photo, found["anomaly_map"])
        return result

    @torch.inference_mode()
    def _map(self, result: PhotoResult, layer: int | None = None) -> torch.Tensor:
        """Return the anomaly map of all layers or of one, `(1, height, width)`, at the size of the model or of the
        stored map of tiles."""
        if result.tiled_map is not None:
            if layer is not None:
                raise ValueError(
                    f"{result.name!r} was split into tiles and has no maps of single layers. Select all layers."
                )
            return torch.from_numpy(result.tiled_map.astype(np.float32))[None]
        if layer is None and result.combined_map is not None:
            return torch.from_numpy((result.combined_map / STEPS).astype(np.float32))[None]
        if layer is not None and layer not in self.layers:
            raise ValueError(f"layer is {layer!r}; expected one of {self.layers}, or None for all layers.")
        layer_maps = torch.from_numpy(result.layer_maps)[None].to(self.detector.device)  # (1, L, 2, grid, grid)
        if layer is not None:
            layer_maps = layer_maps[:, [self.layers.index(layer)]]
        model = cast(ViP2ClipForAnomalyDetection, self.detector.model)
        return model.get_anomaly_maps(layer_maps).cpu()

    def _postprocess(
        self,
        result: PhotoResult,
        anomaly_map: torch.Tensor,
        size: tuple[int, int],
        thresholds: tuple[float, float],
        photo: Image.Image | None = None,
        regions: bool = False,
    ) -> AnomalyDetectionResult:
        """Run the postprocessing of the pipeline with its own settings and these thresholds."""
        outputs = {"scores": torch.tensor([result.score]), "anomaly_maps": anomaly_map}
        settings = {**self.detector._postprocess_params, "references": result.references}
        settings.update(regions=regions, threshold=thresholds)
        return self.detector.postprocess({**outputs, "target_size": size, "image": photo}, **settings)

    def decide(self, result: PhotoResult, thresholds: tuple[float, float]) -> dict[str, Any]:
        """
        Decide about a photo. This is fast: it does not compute the anomaly map.

        Args:
            result ([`PhotoResult`]): result of the photo.
            thresholds (`tuple[float, float]`): image and pixel threshold, in [0, 1].

        Returns:
            `dict`: `score`, `label` and, if the checkpoint is calibrated, `p_value`; equal to those of the pipeline.

        Raises:
            ValueError: if a threshold is outside [0, 1].
        """
        found = self._postprocess(result, torch.zeros(1, 1, 1), (1, 1), thresholds)
        return {name: found[name] for name in ("score", "label", "p_value") if name in found}

    def marked_area(self, result: PhotoResult, thresholds: tuple[float, float]) -> float:
        """
        Compute the fraction of marked pixels in the anomaly map at the size of the model, or of the stored map of
        tiles.

        Args:
            result ([`PhotoResult`]): result of the photo.
            thresholds (`tuple[float, float]`): image and pixel threshold, in [0, 1].

        Returns:
            `float`: the fraction, in [0, 1].
        """
        stored = self._map(result)
        size = (int(stored.shape[-2]), int(stored.shape[-1]))
        return float(self._postprocess(result, stored, size, thresholds)["mask"].mean())

    def inspect(
        self, result: PhotoResult, thresholds: tuple[float, float], photo: Image.Image | None = None
    ) -> AnomalyDetectionResult:
        """
        Compute the output of the pipeline from a stored result, without the model.

        Args:
            result ([`PhotoResult`]): result of the photo.
            thresholds (`tuple[float, float]`): image and pixel threshold, in [0, 1].
            photo (`PIL.Image.Image`, *optional*): the upright photo; needed for `heatmap`.

        Returns:
            [`AnomalyDetectionResult`]: includes `regions`, and `heatmap` if `photo` is set.

        Raises:
            ValueError: if a threshold is outside [0, 1].
        """
        return self._postprocess(result, self._map(result), result.size, thresholds, photo, regions=True)

    def heatmap(self, result: PhotoResult, photo: Image.Image, layer: int | None = None) -> Image.Image:
        """
        Draw the anomaly map of all layers, or of one, over the photo. The map of one layer is zero-shot.

        Args:
            result ([`PhotoResult`]): result of the photo.
            photo (`PIL.Image.Image`): the upright photo.
            layer (`int`, *optional*): feature layer; all layers if not set.

        Returns:
            `PIL.Image.Image`: the heatmap, at the size of the photo.

        Raises:
            ValueError: if `layer` is not a feature layer, or is set for a photo that was split into tiles.
        """
        found = self._postprocess(result, self._map(result, layer), result.size, self.thresholds)
        return draw_heatmap(photo, found["anomaly_map"])


def _reduced(anomaly_map: np.ndarray) -> np.ndarray:
    """Convert a map to float16 and shrink it if its longer side has more than 1024 pixels."""
    scale = TILED_MAP_SIDE / max(anomaly_map.shape)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in anomaly_map.shape)
        anomaly_map = F.interpolate(torch.from_numpy(anomaly_map)[None, None], size, mode="area")[0, 0].numpy()
    return anomaly_map.astype(np.float16)


def _thumbnail(photo: Image.Image, anomaly_map: np.ndarray) -> str:
    """Draw a small heatmap as a `data:` URL."""
    small = photo.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return data_uri(draw_heatmap(small, resized_map(anomaly_map, small.size)))


__all__ = ["MAX_FILE_SIZE", "MAX_IMAGES", "PhotoInspector", "PhotoResult"]
