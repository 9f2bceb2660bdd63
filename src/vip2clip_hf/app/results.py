"""What stands behind the page of `vip2clip app`: photos to results that can be decided anew, drawn and packed."""

import csv
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..models.vip2clip.heatmap_vip2clip import draw_heatmap
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline


MAX_IMAGES = 50
MAX_FILE_SIZE = 20.0
# Longer side of the map that is kept of a photo seen in tiles.
TILED_MAP_SIDE = 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass
class PhotoResult:
    """
    What is kept of one photo: all that decisions and pictures need besides the photo itself, without its pixels.

    Args:
        name (`str`): name of the file, to be shown.
        path (`str`): where the upload lies.
        size (`tuple[int, int]`): height and width of the upright photo.
        score (`float`): in [0, 1].
        layer_maps (`np.ndarray` of shape `(num_layers, 2, grid, grid)`, *optional*):
            Float32 in [0, 1]; None of a photo that was seen in tiles.
        tiled_map (`np.ndarray` of shape `(height, width)`, *optional*):
            Float16 in [0, 1], at most 1024 pixels a side; only of a photo that was seen in tiles.
    """

    name: str
    path: str
    size: tuple[int, int]
    score: float
    layer_maps: np.ndarray | None = None
    tiled_map: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the maps."""
        return sum(kept.nbytes for kept in (self.layer_maps, self.tiled_map) if kept is not None)


class PhotoInspector:
    """
    Photos through a pipeline, each once; decisions and pictures from what was kept of them.

    Args:
        detector ([`AnomalyDetectionPipeline`]): what computes everything.
        max_images (`int`, defaults to 50): photos at a time; the others are left out, and named.
        max_file_size (`float`, defaults to 20): megabytes (1024 x 1024 bytes) a file may have.

    Raises:
        ValueError: limits that are not positive.
    """

    def __init__(
        self, detector: AnomalyDetectionPipeline, max_images: int = MAX_IMAGES, max_file_size: float = MAX_FILE_SIZE
    ):
        if max_images < 1:
            raise ValueError(f"max_images is {max_images!r}; expected at least 1.")
        if not max_file_size > 0:
            raise ValueError(f"max_file_size is {max_file_size!r}; expected a positive number of megabytes.")
        self.detector, self.max_images, self.max_file_size = detector, max_images, max_file_size

    @property
    def thresholds(self) -> tuple[float, float]:
        """Image and pixel threshold of the checkpoint."""
        return self.detector.model.config.image_threshold, self.detector.model.config.pixel_threshold

    @property
    def layers(self) -> list[int]:
        """Blocks of the vision tower whose maps the anomaly map is the mean of."""
        return list(self.detector.model.config.feature_layers)

    @property
    def calibrated(self) -> bool:
        """Whether results have p-values."""
        return bool(((self.detector.model.config.calibration or {}).get("image") or {}).get("scores"))

    def read(self, path: str, name: str) -> Image.Image:
        """
        An upload as an upright RGB image.

        Raises:
            OSError: a file that is gone, too large, damaged or no image.
            ValueError: an image without pixels, or one with values that 8 or 16 bits do not hold.
        """
        try:
            megabytes = os.path.getsize(path) / 1024**2
            if megabytes > self.max_file_size:
                raise OSError(
                    f"{name!r} has {megabytes:.1f} MB; the limit is {self.max_file_size:g} MB, raise it with "
                    "--max-file-size."
                )
            content = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise OSError(f"{name!r} is no longer there, uploads are kept for an hour; add it again.") from (error)
        # By content: a message then has the name of the file, and not its place on the server.
        return load_image({"bytes": content, "path": name})

    def analyse(
        self,
        paths: Sequence[str],
        known: Sequence[PhotoResult] = (),
        on_photo: Callable[[int, str], None] | None = None,
    ) -> tuple[list[PhotoResult], list[tuple[str, str]]]:
        """
        Run the model over uploads that it has not seen yet.

        Args:
            paths (`Sequence[str]`): of the uploads.
            known (`Sequence[PhotoResult]`): of uploads that were seen before; taken over where the path is the same.
            on_photo (`Callable[[int, str], None]`, *optional*): called with position and name before each photo.

        Returns:
            `tuple[list[PhotoResult], list[tuple[str, str]]]`: results in the order of the uploads, and name and reason
            for each that has none.
        """
        seen = {result.path: result for result in known}
        results, problems = [], []
        for position, path in enumerate(paths):
            name = os.path.basename(path)
            if position >= self.max_images:
                problems.append((name, f"left out; the page takes {self.max_images} photos at a time."))
                continue
            if path not in seen:
                if on_photo is not None:
                    on_photo(position, name)
                try:
                    seen[path] = self._analyse(path, name)
                except (OSError, ValueError) as error:
                    problems.append((name, str(error)))
                    continue
            results.append(seen[path])
        return results, problems

    def _analyse(self, path: str, name: str) -> PhotoResult:
        photo = self.read(path, name)
        found = self.detector.decision_map(photo)
        result = PhotoResult(name, path, (photo.height, photo.width), found["score"], found["layer_maps"])
        if result.layer_maps is None:
            result.tiled_map = _reduced(found["anomaly_map"])
        self._postprocess(result, self._map(result), (1, 1), self.thresholds)  # refuses what is not finite
        return result

    @torch.inference_mode()
    def _map(self, result: PhotoResult, layer: int | None = None) -> torch.Tensor:
        """The map of all layers, or of one, `(1, height, width)` at the size of the model."""
        if result.layer_maps is None:
            if layer is not None:
                raise ValueError(f"{result.name!r} was seen in tiles, of which there are no maps of single layers.")
            return torch.from_numpy(result.tiled_map.astype(np.float32))[None]
        if layer is not None and layer not in self.layers:
            raise ValueError(f"layer is {layer!r}; expected one of {self.layers}, or None for all.")
        kept = torch.from_numpy(result.layer_maps)[None].to(self.detector.device)  # (1, L, 2, grid, grid)
        if layer is not None:
            kept = kept[:, [self.layers.index(layer)]]
        return self.detector.model.get_anomaly_maps(kept).cpu()

    def _postprocess(
        self,
        result: PhotoResult,
        anomaly_map: torch.Tensor,
        size: tuple[int, int],
        thresholds: tuple[float, float],
        photo: Image.Image | None = None,
        **options,
    ) -> dict[str, Any]:
        outputs = {"scores": torch.tensor([result.score]), "anomaly_maps": anomaly_map}
        settings = {**self.detector._postprocess_params, **options, "threshold": thresholds}
        return self.detector.postprocess({**outputs, "target_size": size, "image": photo}, **settings)

    def decide(self, result: PhotoResult, thresholds: tuple[float, float]) -> dict[str, Any]:
        """
        The decision about a photo, without its map: fast.

        Args:
            thresholds (`tuple[float, float]`): of image and pixels, in [0, 1].

        Returns:
            `dict`: `score`, `label` and, of a calibrated checkpoint, `p_value`, as the pipeline gives them.

        Raises:
            ValueError: thresholds outside [0, 1].
        """
        found = self._postprocess(result, torch.zeros(1, 1, 1), (1, 1), thresholds, regions=False)
        return {name: found[name] for name in ("score", "label", "p_value") if name in found}

    def inspect(
        self, result: PhotoResult, thresholds: tuple[float, float], photo: Image.Image | None = None
    ) -> dict[str, Any]:
        """
        What the pipeline gives for a photo, from what was kept, without the model.

        Args:
            thresholds (`tuple[float, float]`): of image and pixels, in [0, 1].
            photo (`PIL.Image.Image`, *optional*): the upright photo, for `heatmap`.

        Returns:
            `dict`: see [`AnomalyDetectionPipeline`]; with `regions`, and with `heatmap` when the photo is given.

        Raises:
            ValueError: thresholds outside [0, 1].
        """
        return self._postprocess(result, self._map(result), result.size, thresholds, photo, regions=True)

    def heatmap(self, result: PhotoResult, photo: Image.Image, layer: int | None = None) -> Image.Image:
        """
        The map of all layers, or of one, over the photo.

        Raises:
            ValueError: a layer the checkpoint has not, or any of a photo that was seen in tiles.
        """
        found = self._postprocess(result, self._map(result, layer), result.size, self.thresholds, regions=False)
        return draw_heatmap(photo, found["anomaly_map"])

    def write_zip(
        self,
        target: Path,
        model_name: str,
        results: Sequence[PhotoResult],
        problems: Sequence[tuple[str, str]],
        thresholds: tuple[float, float],
    ):
        """
        Results as a ZIP file: `results.json`, `results.csv`, and for every photo heatmap and mask as PNG.

        Args:
            target (`Path`): file to write.
            model_name (`str`): what the results say about where they come from.
            results, problems: from [`analyse`].
            thresholds (`tuple[float, float]`): of image and pixels, in [0, 1].

        Raises:
            OSError: an upload that is gone.
            ValueError: thresholds outside [0, 1].
        """
        entries = []
        with zipfile.ZipFile(target, "w") as archive:
            for number, result in enumerate(results, start=1):
                found = self.inspect(result, thresholds, self.read(result.path, result.name))
                entry = {"image": result.name, "score": found["score"], "label": found["label"]}
                if "p_value" in found:
                    entry["p_value"] = found["p_value"]
                entry.update(anomalous_pixels=int(found["mask"].sum()), regions=found["regions"])
                pictures = {"heatmap": found["heatmap"], "mask": Image.fromarray(found["mask"])}
                for kind, picture in pictures.items():
                    entry[kind] = f"{kind}s/{number:03d}_{safe_stem(result.name)}.png"
                    archive.writestr(entry[kind], _png(picture))
                entries.append(entry)
            entries += [{"image": name, "error": reason} for name, reason in problems]
            content = {"model": model_name, "image_threshold": thresholds[0], "pixel_threshold": thresholds[1]}
            text = json.dumps({**content, "results": entries}, indent=2, ensure_ascii=False)
            archive.writestr("results.json", text, zipfile.ZIP_DEFLATED)
            archive.writestr("results.csv", _csv(entries), zipfile.ZIP_DEFLATED)


def _reduced(anomaly_map: np.ndarray) -> np.ndarray:
    """A map as it is kept: float16, its longer side at most 1024."""
    share = TILED_MAP_SIDE / max(anomaly_map.shape)
    if share < 1:
        size = tuple(max(1, round(side * share)) for side in anomaly_map.shape)
        anomaly_map = F.interpolate(torch.from_numpy(anomaly_map)[None, None], size, mode="area")[0, 0].numpy()
    return anomaly_map.astype(np.float16)


def safe_stem(name: str) -> str:
    """A file name without its extension, as part of another: ASCII letters, digits, "_" and "-" only, at most 60."""
    return _UNSAFE.sub("_", os.path.splitext(name)[0]).strip("_")[:60] or "photo"


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def _csv(entries: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    columns = ["image", "score", "label", "p_value", "anomalous_pixels", "error"]
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return stream.getvalue()


__all__ = ["MAX_FILE_SIZE", "MAX_IMAGES", "PhotoInspector", "PhotoResult", "safe_stem"]
