"""The "anomaly-detection" pipeline."""
# mypy: disable-error-code="overload-overlap"

import os
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import torch
from transformers import AutoImageProcessor, AutoModel, PreTrainedConfig
from transformers.pipelines.base import Pipeline
from transformers.utils import logging
from typing_extensions import Unpack

from .arguments_vip2clip import READING_ARGUMENTS, call_arguments, label_names, loading_arguments
from .backbone_vip2clip import HUB_KWARGS, check_device, naming
from .call_types_vip2clip import CallOptions, ModelOptions, Photo, Photos, PhotoStream
from .decision_config_vip2clip import DecisionConfig
from .decision_vip2clip import find_regions
from .heatmap_vip2clip import draw_heatmap
from .image_loading_vip2clip import DEFAULT_TIMEOUT, reading_options
from .image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from .pipeline_inputs_vip2clip import ReadsPhotos, Rows, as_inputs, load_with_tiles
from .pipeline_steps_vip2clip import (
    as_bank,
    bank_of,
    check_model_type,
    decision_of,
    score_settings,
    warn_about_references,
    zero_shot_settings,
)
from .pipeline_torch_vip2clip import TorchRows, combine_tiles
from .reference_bank_vip2clip import ReferenceBank
from .results_vip2clip import AnomalyDetectionResult


logger = logging.get_logger(__name__)
# Call arguments by the step that uses them.
PREPROCESS = ("timeout", "heatmap", "tile_size", "tile_overlap", *READING_ARGUMENTS)
FORWARD = ("top_k", "references")
POSTPROCESS = ("threshold", "regions", "tile_size", "tile_overlap", "top_k", "references")


class AnomalyDetectionPipeline(ReadsPhotos, Pipeline):
    """
    Pipeline for anomaly detection: score, label, anomaly map and mask of each image, at the size of the image.

    Example:

    ```python
    >>> from vip2clip_hf import AnomalyDetectionPipeline

    >>> detector = AnomalyDetectionPipeline.from_pretrained("path/to/checkpoint")
    >>> result = detector("photo.jpg", heatmap=True)
    >>> result["score"], result["label"]
    >>> result["heatmap"].save("heatmap.png")
    ```

    Pass these arguments in a call, or when creating the pipeline to change their defaults:

    - `batch_size` (`int`, defaults to 1): number of images in a batch.
    - `threshold` (`float` or `tuple[float, float]`, defaults to the thresholds of `model.decision`): an image or pixel
      is anomalous if its score is greater than the threshold. Pass a pair to use different thresholds for images and
      pixels. `None` in a pair is the threshold of `model.decision`.
    - `top_k` (`int`, defaults to `model.decision`, else the configuration): number of top patches per layer used for
      the image score (eq. 8).
    - `heatmap` (`bool`, defaults to `False`): whether to draw the anomaly map over the image.
    - `regions` (`bool`, defaults to `False`): whether to list the regions of the mask.
    - `tile_size` (`int`, defaults to `model.decision`, else 0): side of square tiles in pixels. Larger images are
      split into tiles. Their score is the maximum over the tiles, and their map is blended from the maps of the tiles.
      0 disables tiling.
    - `tile_overlap` (`float`, defaults to `model.decision`, else 0.25): fraction of a tile shared by adjacent tiles,
      in [0, 0.9].
    - `timeout` (`float`, *optional*, defaults to 60): seconds to wait for a response from the server of a URL. `None`
      waits forever.
    - `bit_depth` (`int`), `page` (`int`) and `channel_order` (`"rgb"` or `"bgr"`), which default to those of the image
      processor: how to read images, see [`load_image`].
    - `references` ([`ReferenceBank`] or photos, *optional*, defaults to those of the checkpoint): photos of good parts
      to compare with: a bank, a folder, or a list of images. Scores and maps then combine both. `None` uses none.

    Except for `timeout` and `references`, `None` stands for the default.
    """

    image_processor: ViP2ClipImageProcessor
    # The library declares these attributes as None.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        device: int | str | torch.device | None = None,
        batch_size: int | None = None,
        threshold: float | tuple[float | None, float | None] | None = None,
        top_k: int | None = None,
        heatmap: bool = False,
        regions: bool = False,
        tile_size: int | None = None,
        tile_overlap: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        bit_depth: int | None = None,
        page: int | None = None,
        channel_order: Literal["rgb", "bgr"] | None = None,
        references: ReferenceBank | str | os.PathLike[str] | Sequence[Any] | None = "auto",
        **kwargs: Unpack[ModelOptions],
    ) -> "AnomalyDetectionPipeline":
        """
        Create a pipeline from a checkpoint. Once `vip2clip_hf` is imported, no code from the checkpoint is executed.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of a checkpoint with model and image processor.
            device (`int`, `str` or `torch.device`, *optional*):
                Device of the model. By default, the first accelerator if available, otherwise the CPU.
            batch_size, threshold, top_k, heatmap, regions, tile_size, tile_overlap, timeout (*optional*):
                Defaults of the call arguments, see [`AnomalyDetectionPipeline`].
            bit_depth, page, channel_order (*optional*):
                How to read images, see [`load_image`]. They default to those of the image processor.
            references (*optional*):
                Photos of good parts to compare with, see [`AnomalyDetectionPipeline`]. They default to those of the
                checkpoint.
            kwargs:
                Arguments of [`ViP2ClipForAnomalyDetection.from_pretrained`], such as `dtype`, `revision`, `token` and
                `backbone`.

        Returns:
            [`AnomalyDetectionPipeline`]: the pipeline.

        Raises:
            OSError: if checkpoint or backbone are not found.
            RuntimeError: if weights are missing.
            ValueError: if the device is not available, the checkpoint belongs to another model type, or a default of a
                call argument is out of range.
        """
        check_device(device)
        options: dict[str, Any] = {"threshold": threshold, "top_k": top_k, "heatmap": heatmap, "regions": regions}
        options.update(tile_size=tile_size, tile_overlap=tile_overlap, timeout=timeout)
        options.update(bit_depth=bit_depth, page=page, channel_order=channel_order)
        if not (isinstance(references, str) and references == "auto"):
            options["references"] = references
        call_arguments(options)  # refuse them before loading weights
        options = loading_arguments({**options, "batch_size": batch_size})
        given: dict[str, Any] = {**kwargs}
        hub_kwargs = {name: given[name] for name in HUB_KWARGS if name in given}
        shared = {name: given[name] for name in (*HUB_KWARGS, "trust_remote_code") if name in given}
        with naming("Checkpoint", pretrained_model_name_or_path):
            # Refuse other models before loading their weights.
            config_dict, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
            check_model_type(config_dict.get("model_type"))
            model = AutoModel.from_pretrained(pretrained_model_name_or_path, **kwargs)
            # Use an overridden image_size for the image processor as well.
            size = {"height": model.config.image_size, "width": model.config.image_size}
            image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **shared, size=size)
        return cls(model=model, image_processor=image_processor, task="anomaly-detection", device=device, **options)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **loading_arguments(kwargs))
        # Compare names, not classes: remote code is loaded as separate copies of the classes.
        check_model_type(getattr(self.model.config, "model_type", None))
        if self.image_processor is None:
            raise ValueError(
                "image_processor is None; expected a ViP2ClipImageProcessor, of the image_size of the model."
            )
        check_image_processor(self.image_processor, self.model.config.image_size)
        label_names(self.model.config.id2label)
        self.model.eval()  # after training, a model is still in training mode

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Save model and image processor, for use with this package.

        To write a folder that can also be used without this package, call [`vip2clip_hf.hub.save_checkpoint`].

        Args:
            save_directory (`str` or `os.PathLike`): folder to write to.
            kwargs: arguments of `save_pretrained` of model and image processor.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory, **kwargs)

    # A path and a list are also iterable, so the types overlap; the first one that fits counts.
    @overload  # type: ignore[override]
    def __call__(self, inputs: Photo, **kwargs: Unpack[CallOptions]) -> AnomalyDetectionResult: ...
    @overload
    def __call__(self, inputs: Photos, **kwargs: Unpack[CallOptions]) -> list[AnomalyDetectionResult]: ...
    @overload
    def __call__(self, inputs: PhotoStream, **kwargs: Unpack[CallOptions]) -> Iterator[AnomalyDetectionResult]: ...
    # Unlike in the library, positional options are an error.
    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """
        Detect anomalies in one or more images.

        Args:
            inputs:
                An image (path, URL, bytes, PIL image or array, see [`load_image`]), or several images: a list, a
                folder, an array with four axes, a column of pandas, a generator or a dataset. From a dataset, the
                column `"image"` is used; from pairs of image and label, the image. Rows are read by position. An array
                of shape (3 or 4, height, width) is refused, because it can also be a stack of gray photos.
            kwargs:
                Call arguments, see [`AnomalyDetectionPipeline`].

        Returns:
            [`AnomalyDetectionResult`], a dict, for one image; a list of them for a list, folder or array; and an
            iterator for a generator or dataset. The iterator keeps at most one batch in memory. If it cannot read an
            image, it raises an error, and the results of the batch are lost. If the settings differ from those of
            the calibration, `p_value` is `None`, with a warning.

        Raises:
            OSError: if an image cannot be read.
            TypeError: if a call argument is unknown.
            ValueError: if the input is of another kind, a folder or list contains no images, or a call argument is out
                of range.
        """
        kwargs, inputs = loading_arguments(kwargs), as_inputs(inputs)
        inputs = TorchRows(inputs.rows) if isinstance(inputs, Rows) else inputs
        if isinstance(inputs, types.GeneratorType) and (kwargs.get("num_workers") or self._num_workers):
            logger.warning_once("num_workers is not used for generators, which one process has to read in order.")
            kwargs["num_workers"] = 0
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        options = call_arguments(kwargs)
        if "references" in options:  # the defaults are not known yet when the pipeline is created
            defaults = {**getattr(self, "_preprocess_params", {}), **getattr(self, "_forward_params", {})}
            references, defaults = options["references"], {**defaults, **options}
            options["references"] = as_bank(references, self.model, self.image_processor, defaults)
        preprocess, forward, postprocess = (
            {name: options[name] for name in names if name in options} for names in (PREPROCESS, FORWARD, POSTPROCESS)
        )
        return preprocess, forward, postprocess

    @property
    def decision(self) -> DecisionConfig:
        """Thresholds, tiles and calibration: `decision` of the model, if it belongs to the references in use."""
        return decision_of(self.model, {**self._preprocess_params, **self._forward_params})[0]

    @property
    def references(self) -> ReferenceBank | None:
        """Photos of good parts that the pipeline compares with by default, or `None`."""
        return bank_of(self.model, self._forward_params)

    def score_settings(self) -> dict[str, Any]:
        """
        Return the settings of the pipeline that scores depend on.

        Returns:
            `dict[str, Any]`: `tile_size` (0 without tiling), `tile_overlap`, `top_k` and, with references,
            `references` (their checksum).
        """
        return score_settings(self.model, {**self._preprocess_params, **self._forward_params})

    def _photo_options(self) -> dict[str, Any]:
        return {**reading_options(self.image_processor), **self._preprocess_params}

    def decision_map(self, image: Any) -> dict[str, Any]:
        """
        Compute the score and map of an image before thresholds are applied, for example for calibration.

        Args:
            image: an image, as in a call.

        Returns:
            `dict`:

            - `score` (`float`): probability that the image is anomalous, in [0, 1].
            - `anomaly_map` (`np.ndarray` of shape `(image_size, image_size)`): float32 in [0, 1]. With tiling, it has
              the size of the image.
            - `layer_maps` (`np.ndarray` of shape `(num_layers, 2, grid, grid)`): float32 in [0, 1]. With a batch axis,
              they are the input of `model.get_anomaly_maps`. `None` with tiling.

        Raises:
            OSError: if the image cannot be read.
            ValueError: if the image is of another kind.
        """
        self.score_settings()  # raises if the references were read with other tiles
        inputs = self.preprocess(image, **{**self._preprocess_params, "heatmap": False})
        outputs = self.forward(inputs, **self._forward_params)
        score, anomaly_map = outputs["scores"].float().reshape(-1)[0], outputs["anomaly_maps"][0]
        layer_maps = outputs.get("layer_maps")
        return {
            "score": float(score),
            "anomaly_map": anomaly_map.float().cpu().numpy(),
            "layer_maps": None if layer_maps is None else layer_maps[0].float().cpu().numpy(),
        }

    # The signatures of preprocess, _forward and postprocess differ from those declared in the library.
    def preprocess(  # type: ignore[override]
        self,
        image: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        heatmap: bool = False,
        tile_size: int | None = None,
        tile_overlap: float | None = None,
        **reading: Any,
    ) -> dict[str, Any]:
        """Load an image, or the image of a row of a dataset, and prepare it and its tiles for the model."""
        settings = zero_shot_settings(self.model, {"tile_size": tile_size, "tile_overlap": tile_overlap})
        image, boxes = load_with_tiles(image, timeout, {**self.reading_options(), **reading}, settings)
        # The processor resizes every tile in _forward. There is nothing to do for the whole photo.
        side, channels = self.model.config.image_size, self.model.config.clip_vision_config.num_channels
        pixel_values = torch.zeros(0, channels, side, side)
        if not boxes:
            pixel_values = self.image_processor([image], return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixel_values,
            "target_size": (image.height, image.width),
            "image": image if heatmap else None,
            "tiles": (image, boxes) if boxes else None,
        }

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], top_k: int | None = None, references: Any = "auto"
    ) -> Any:
        options = {"top_k": zero_shot_settings(self.model, {"top_k": top_k})["top_k"], "references": references}
        # In a batch, pixel_values contains the photos that are not split into tiles.
        pixel_values, tiles = model_inputs["pixel_values"], model_inputs["tiles"]
        passed = {"target_size": model_inputs["target_size"], "image": model_inputs["image"]}
        is_batch = isinstance(passed["target_size"], list)
        tiles_per_image = tiles if is_batch else [tiles]
        outputs = self.model(pixel_values=pixel_values, **options) if len(pixel_values) else None
        warn_about_references(outputs)
        if outputs is not None and not any(tiles_per_image):
            return {**{name: outputs[name] for name in ("scores", "anomaly_maps", "layer_maps")}, **passed}
        found = combine_tiles(self.model, self.image_processor, options, outputs, tiles_per_image)
        return {**found, **passed}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        threshold: float | tuple[float | None, float | None] | None = None,
        regions: bool = False,
        tile_size: int | None = None,
        tile_overlap: float | None = None,
        top_k: int | None = None,
        references: Any = "auto",
    ) -> AnomalyDetectionResult:
        """Convert the outputs of the model for one image to the result of a call."""
        maps = model_outputs["anomaly_maps"]  # with tiling a list, because they can differ in size
        anomaly_maps = torch.stack(maps) if isinstance(maps, list) else maps
        options = {"tile_size": tile_size, "tile_overlap": tile_overlap, "top_k": top_k, "references": references}
        decision, calibrated = decision_of(self.model, options)
        (found,) = self.image_processor.post_process_anomaly_detection(
            {"scores": model_outputs["scores"].reshape(-1), "anomaly_maps": anomaly_maps},
            target_sizes=[model_outputs["target_size"]],
            threshold=threshold,
            id2label=self.model.config.id2label,
            decision=decision,
            calibrated=calibrated,
        )
        result = AnomalyDetectionResult(found)
        result.update({name: found[name].cpu().numpy() for name in ("anomaly_map", "mask")})
        if regions:
            result["regions"] = find_regions(result["anomaly_map"], result["mask"])
        if model_outputs["image"] is not None:
            result["heatmap"] = draw_heatmap(model_outputs["image"], result["anomaly_map"])
        return result


__all__ = ["AnomalyDetectionPipeline"]
