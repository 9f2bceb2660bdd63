"""The "anomaly-detection" pipeline."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, PreTrainedConfig
from transformers.pipelines.base import Pipeline
from transformers.utils import logging

from .backbone_vip2clip import check_device, naming
from .decision_vip2clip import find_regions, near_large_regions, p_value
from .heatmap_vip2clip import draw_heatmap
from .image_loading_vip2clip import DEFAULT_TIMEOUT, list_images, load_image
from .image_processing_vip2clip import check_image_processor
from .tiling_vip2clip import TileBlender, check_tiling, tile_boxes


logger = logging.get_logger(__name__)
# Tiles that go through the model together.
TILES_AT_ONCE = 4


class AnomalyDetectionPipeline(Pipeline):
    """
    Anomaly detection on photos: score, decision, map and mask at the size of each photo.

    Example:

    ```python
    >>> from vip2clip_hf import AnomalyDetectionPipeline

    >>> detector = AnomalyDetectionPipeline.from_pretrained("path/to/checkpoint")
    >>> result = detector("photo.jpg", heatmap=True)
    >>> result["score"], result["label"]
    >>> result["heatmap"].save("heatmap.png")
    ```

    Call arguments, which can also be given when the pipeline is made:

    - `batch_size` (`int`, defaults to 1): images that go through the model together.
    - `threshold` (`float` or `tuple[float, float]`, defaults to those of the model's configuration): an image or
      pixel is anomalous when its value is greater than this; a pair gives image and pixel threshold apart.
    - `top_k` (`int`, defaults to that of the configuration): patches per layer that stand for the image (eq. 8).
    - `heatmap` (`bool`, defaults to `False`): whether to draw the map over the photo.
    - `regions` (`bool`, defaults to `False`): whether to list the connected areas of the mask.
    - `tile_size` (`int`, defaults to that of the calibration, else 0): side in pixels of the square tiles in which
      photos larger than it are seen; 0 for none. The score is then the largest of the tiles, the map is blended.
    - `tile_overlap` (`float`, defaults to that of the calibration, else 0.25): share of a tile that neighbours have in
      common, in [0, 0.9].
    - `timeout` (`float`, defaults to 60): seconds a server may be silent before a URL is given up.
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        device: int | str | torch.device | None = None,
        batch_size: int | None = None,
        threshold: float | tuple[float, float] | None = None,
        top_k: int | None = None,
        heatmap: bool = False,
        regions: bool = False,
        tile_size: int | None = None,
        tile_overlap: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        **kwargs,
    ) -> "AnomalyDetectionPipeline":
        """
        Pipeline from a folder or Hub id. With vip2clip_hf imported no code of the checkpoint is run.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of a complete checkpoint: model and image processor.
            device (*optional*):
                Where to run; the first accelerator when not given.
            batch_size, threshold, top_k, heatmap, regions, tile_size, tile_overlap, timeout (*optional*):
                Defaults of the call arguments.
            kwargs:
                Passed to the model's `from_pretrained`: `dtype`, `revision`, `token`, `backbone`, ...
        """
        check_device(device)
        shared = {
            name: kwargs[name]
            for name in (
                "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
                "trust_remote_code",
            )
            if name in kwargs
        }  # fmt: skip
        with naming("Checkpoint", pretrained_model_name_or_path):
            # Before anything large of another kind is loaded.
            config_dict, _ = PreTrainedConfig.get_config_dict(
                pretrained_model_name_or_path, **{k: v for k, v in shared.items() if k != "trust_remote_code"}
            )
            _check_model_type(config_dict.get("model_type"))
            model = AutoModel.from_pretrained(pretrained_model_name_or_path, **kwargs)
            # An overridden image_size holds for both.
            size = {"height": model.config.image_size, "width": model.config.image_size}
            image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **shared, size=size)
        options = {"batch_size": batch_size, "threshold": threshold, "top_k": top_k}
        options.update(heatmap=heatmap, regions=regions, timeout=timeout)
        options.update(tile_size=tile_size, tile_overlap=tile_overlap)
        return cls(model=model, image_processor=image_processor, task="anomaly-detection", device=device, **options)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # By name, not by class: from a folder, configuration and model files are loaded as separate copies.
        _check_model_type(getattr(self.model.config, "model_type", None))
        if self.image_processor is None:
            raise ValueError(
                "The pipeline needs an image processor; pass image_processor=, for example "
                "ViP2ClipImageProcessor(size=model.config.image_size)."
            )
        check_image_processor(self.image_processor, self.model.config.image_size)
        self.model.eval()  # a model that comes from training is still in training mode

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """
        Save model and image processor, for use with this package. `vip2clip_hf.hub.save_checkpoint` writes a folder
        that also works where it is not installed.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> dict[str, Any] | list[dict[str, Any]] | Iterable[dict[str, Any]]:
        """
        Args:
            inputs:
                One image (path, http(s) URL, PIL image or array; see `ViP2ClipImageProcessor`), or several: a list, a
                folder, an array with four axes, a generator or a dataset. Rows of a dataset are read at `"image"`.
            kwargs:
                See the class.

        Returns:
            For one image a dict, for a list, a folder or an array a list of dicts, for a generator or a dataset an
            iterator of dicts, which never holds more than one batch. An image that cannot be read ends it, and with it
            the results of its batch.

            - `score` (`float`): probability that the image is anomalous, in [0, 1].
            - `label` (`str`): "normal" or "anomalous".
            - `anomaly_map` (`np.ndarray` of shape `(height, width)`): float32 in [0, 1], at the size of the photo.
            - `mask` (`np.ndarray` of shape `(height, width)`): bool, True for anomalous pixels.
            - `p_value` (`float`): only from a calibrated checkpoint: how likely a normal image has a score this large,
              in (0, 1]; None, with a warning, where tiles or top-k are others than in the calibration.
            - `heatmap` (`PIL.Image.Image`): only with `heatmap=True`.
            - `regions` (`list[dict]`): only with `regions=True`: `box` (left, top, right, bottom in pixels), `area`,
              `mean_score` and `peak_score` of every connected area of the mask, the largest peak first.

        Raises:
            OSError: an image that cannot be read.
            ValueError: an input of another kind, a folder or list without images, or a threshold outside [0, 1].
        """
        if isinstance(inputs, (str, os.PathLike)) and os.path.isdir(inputs):
            inputs = list_images(inputs)
        elif isinstance(inputs, tuple) or (isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == 4):
            inputs = list(inputs)
        elif not isinstance(
            inputs, (str, os.PathLike, Image.Image, np.ndarray, torch.Tensor, dict, list, torch.utils.data.Dataset)
        ):
            # The base class streams torch's datasets and generators only.
            if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
                inputs = _Rows(inputs)
            elif hasattr(inputs, "__iter__"):
                inputs = (row for row in inputs)
            else:
                raise ValueError(f"Expected an image or several, found {type(inputs).__name__}.")
        if isinstance(inputs, list) and not inputs:
            raise ValueError("Expected at least one image, found an empty list.")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        threshold=None,
        top_k=None,
        heatmap=None,
        regions=None,
        tile_size=None,
        tile_overlap=None,
        timeout=None,
        **kwargs,
    ):
        if kwargs:
            raise TypeError(
                f"Unknown arguments {', '.join(sorted(kwargs))}; the pipeline takes batch_size, heatmap, num_workers, "
                "regions, threshold, tile_overlap, tile_size, timeout and top_k."
            )
        if tile_size or tile_overlap is not None:
            check_tiling(tile_size or 16, 0.0 if tile_overlap is None else tile_overlap)

        def given(**options):
            return {name: value for name, value in options.items() if value is not None}

        preprocess = given(timeout=timeout, heatmap=heatmap, tile_size=tile_size, tile_overlap=tile_overlap)
        postprocess = given(
            threshold=threshold, regions=regions, tile_size=tile_size, tile_overlap=tile_overlap, top_k=top_k
        )
        return preprocess, given(top_k=top_k), postprocess

    def score_settings(self) -> dict[str, Any]:
        """What scores of this pipeline depend on besides the checkpoint: `tile_size` (0 for none), `tile_overlap`,
        `top_k`."""
        options = self._preprocess_params
        return self._settings(options.get("tile_size"), options.get("tile_overlap"), self._forward_params.get("top_k"))

    def decision_map(self, image: Any) -> dict[str, Any]:
        """
        What decisions are made on, for calibration.

        Args:
            image: one image, as for a call.

        Returns:
            `dict`: `score` (float in [0, 1]) and `anomaly_map` (`np.ndarray`, float32 in [0, 1]) at the size of the
            model, where the photo is seen in tiles at that of the photo. The map of a call is resized from it. Also
            `layer_maps` (`np.ndarray` of shape `(num_layers, 2, grid, grid)`, float32 in [0, 1]), from which
            `model.get_anomaly_maps` makes the map or that of some layers; None where the photo is seen in tiles.
        """
        outputs = self.forward(
            self.preprocess(image, **{**self._preprocess_params, "heatmap": False}), **self._forward_params
        )
        score, anomaly_map = outputs["scores"].reshape(-1)[0], outputs["anomaly_maps"][0]
        layer_maps = outputs.get("layer_maps")
        return {
            "score": float(score),
            "anomaly_map": anomaly_map.float().cpu().numpy(),
            "layer_maps": None if layer_maps is None else layer_maps[0].float().cpu().numpy(),
        }

    def _settings(
        self, tile_size: int | None = None, tile_overlap: float | None = None, top_k: int | None = None
    ) -> dict[str, Any]:
        """What scores depend on: what is given, else what the calibration used, else the defaults."""
        calibrated = (self.model.config.calibration or {}).get("settings") or {}
        tile_size = calibrated.get("tile_size", 0) if tile_size is None else tile_size
        tile_overlap = calibrated.get("tile_overlap", 0.25) if tile_overlap is None else tile_overlap
        return {
            "tile_size": tile_size,
            "tile_overlap": tile_overlap if tile_size else 0.25,
            "top_k": self.model.config.top_k if top_k is None else top_k,
        }

    def preprocess(
        self,
        image: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        heatmap: bool = False,
        tile_size: int | None = None,
        tile_overlap: float | None = None,
    ) -> dict[str, Any]:
        if isinstance(image, dict) and not {"bytes", "path"} & set(image):
            if "image" not in image:
                raise ValueError(f"Expected rows with a column 'image', found the columns {sorted(image)}.")
            image = image["image"]
        image = load_image(image, timeout=timeout)
        settings, boxes = self._settings(tile_size, tile_overlap), []
        if settings["tile_size"]:
            boxes = tile_boxes(image.height, image.width, settings["tile_size"], settings["tile_overlap"])
        return {
            "pixel_values": self.image_processor(image, return_tensors="pt")["pixel_values"],
            "target_size": (image.height, image.width),
            "image": image if heatmap else None,
            "tiles": (image, boxes) if boxes else None,
        }

    def _forward(self, model_inputs: dict[str, Any], top_k: int | None = None) -> dict[str, Any]:
        pixel_values, tiles = model_inputs["pixel_values"], model_inputs["tiles"]
        passed = {"target_size": model_inputs["target_size"], "image": model_inputs["image"]}
        several = isinstance(passed["target_size"], list)
        of_each = tiles if several else [tiles]
        if not any(of_each):
            outputs = self.model(pixel_values=pixel_values, top_k=top_k)
            return {**{name: outputs[name] for name in ("scores", "anomaly_maps", "layer_maps")}, **passed}
        scores, maps = [], []
        for position, found in enumerate(of_each):
            if found:
                score, anomaly_map = self._forward_tiles(*found, pixel_values, top_k)
            else:
                outputs = self.model(pixel_values=pixel_values[position : position + 1], top_k=top_k)
                score, anomaly_map = outputs["scores"][0].cpu(), outputs["anomaly_maps"][0].cpu()
            scores.append(score)
            maps.append(anomaly_map)
        return {"scores": torch.stack(scores), "anomaly_maps": maps, **passed}

    def _forward_tiles(
        self, image: Image.Image, boxes: list, like: torch.Tensor, top_k: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score and map of an image from its tiles."""
        blender, scores = TileBlender(image.height, image.width, boxes), []
        for start in range(0, len(boxes), TILES_AT_ONCE):
            some = boxes[start : start + TILES_AT_ONCE]
            pixel_values = self.image_processor([image.crop(box) for box in some], return_tensors="pt")["pixel_values"]
            outputs = self.model(pixel_values=pixel_values.to(like), top_k=top_k)
            scores.append(outputs["scores"].cpu())
            for box, anomaly_map in zip(some, outputs["anomaly_maps"]):
                blender.add(box, anomaly_map)
        return torch.cat(scores).max(), blender.result()

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        threshold: float | tuple[float, float] | None = None,
        regions: bool = False,
        tile_size: int | None = None,
        tile_overlap: float | None = None,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        config = self.model.config
        if threshold is None:
            threshold = (config.image_threshold, config.pixel_threshold)
        # In a list where the maps of a batch differ in size.
        maps = model_outputs["anomaly_maps"]
        anomaly_maps = torch.stack(maps) if isinstance(maps, list) else maps
        result = self.image_processor.post_process_anomaly_detection(
            {"scores": model_outputs["scores"].reshape(-1), "anomaly_maps": anomaly_maps},
            target_sizes=[model_outputs["target_size"]],
            threshold=threshold,
        )[0]
        result = {
            **result,
            "anomaly_map": result["anomaly_map"].cpu().numpy(),
            "mask": result["mask"].cpu().numpy(),
        }
        calibration = config.calibration or {}
        least = (calibration.get("pixel") or {}).get("min_region_area", 0)
        if least:
            pixel_threshold = threshold[1] if isinstance(threshold, (tuple, list)) else threshold
            coarse = anomaly_maps[0].float().cpu().numpy()
            result["mask"] &= near_large_regions(coarse > pixel_threshold, least, result["mask"].shape)
        stored = calibration.get("image") or {}
        if stored.get("scores"):
            result["p_value"] = None
            if self._settings(tile_size, tile_overlap, top_k) == calibration.get("settings"):
                result["p_value"] = p_value(result["score"], stored["scores"], stored["num_images"])
            else:
                logger.warning_once(
                    f"The checkpoint was calibrated with {calibration.get('settings')}, these scores come from "
                    f"{self._settings(tile_size, tile_overlap, top_k)}: its false alarm rate does not hold, and there "
                    "is no p-value."
                )
        if regions:
            result["regions"] = find_regions(result["anomaly_map"], result["mask"])
        if model_outputs["image"] is not None:
            result["heatmap"] = draw_heatmap(model_outputs["image"], result["anomaly_map"])
        return result


class _Rows(torch.utils.data.Dataset):
    """A data set of another library for the base class. Unlike a generator it has a length and can be pickled."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def _check_model_type(found: str | None):
    if found != "vip2clip":
        raise ValueError(f"Expected a checkpoint with model_type 'vip2clip', found model_type {found!r}.")


__all__ = ["AnomalyDetectionPipeline"]
