"""Image processor of ViP²-CLIP: photos to pixel values, masks to labels, model outputs to results at photo size."""

from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from .decision_vip2clip import LABELS
from .image_loading_vip2clip import load_image, load_mask


class ViP2ClipImageProcessorKwargs(ImagesKwargs, total=False):
    """
    mask_threshold (`int` or `float`, *optional*, defaults to 0):
        Mask pixels greater than this are anomalous. Lossy masks (JPEG) want 127.
    """

    mask_threshold: int | float


class ViP2ClipImageProcessor(PilBackend):
    r"""
    Image processor of ViP²-CLIP. Uses Pillow and numpy only, with or without torchvision installed.

    Images become upright 8-bit RGB (see [`load_image`]), are resized to a square with bicubic interpolation, their
    aspect ratio not kept, and normalised with CLIP's mean and standard deviation.

    Args:
        size (`int` or `dict[str, int]`, *optional*, defaults to `{"height": 518, "width": 518}`):
            Size of `pixel_values`; the `image_size` of the model.
        resample (`PIL.Image.Resampling`, *optional*, defaults to bicubic), rescale_factor (`float`, *optional*, \
defaults to 1/255), image_mean, image_std (*optional*, default to CLIP's):
            As in other image processors.
        mask_threshold (`int` or `float`, *optional*, defaults to 0):
            Mask pixels greater than this are anomalous. Lossy masks (JPEG) want 127.

    Example:

    ```python
    >>> import numpy as np
    >>> from vip2clip_hf import ViP2ClipImageProcessor

    >>> processor = ViP2ClipImageProcessor(size=224)
    >>> processor(np.zeros((600, 800, 3), dtype=np.uint8), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 224, 224])
    ```
    """

    valid_kwargs = ViP2ClipImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    size = {"height": 518, "width": 518}
    resample = PILImageResampling.BICUBIC
    rescale_factor = 1 / 255
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    mask_threshold = 0

    def __init__(self, **kwargs: Unpack[ViP2ClipImageProcessorKwargs]):
        super().__init__(**kwargs)

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[ViP2ClipImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images:
                One image or a list of images: paths, URLs, PIL images or arrays, see [`load_image`]. An array with
                four axes is a batch.
            segmentation_maps (*optional*):
                One mask per image, of the same size, `None` for an image that has none: files, PIL images or arrays
                (height, width), also stacked. Pixels with a value greater than `mask_threshold` are anomalous; colours
                and palettes count by their grey value. Masks are resized bilinearly and cut at one half, as in the
                released code.
            return_tensors (`"pt"` or `"np"`, *optional*):
                Type of the result.

        Returns:
            `BatchFeature`: `pixel_values` `(batch_size, 3, height, width)`, float32, and with segmentation maps
            `mask_labels` `(batch_size, height, width)`, uint8, 1 for anomalous pixels.

        Raises:
            OSError: a file that cannot be read.
            ValueError: images or masks of another kind than described, or a mask of another size than its image.
        """
        image_like_kwargs = {} if segmentation_maps is None else {"segmentation_maps": segmentation_maps}
        return super().preprocess(images, image_like_kwargs=image_like_kwargs, **kwargs)

    def _preprocess_image_like_inputs(
        self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs
    ) -> BatchFeature:
        images = [load_image(image) for image in _flatten(images)]
        if not images:
            raise ValueError("Expected at least one image, found an empty list.")
        for name in ("do_center_crop", "do_pad", "data_format", "input_data_format"):
            if kwargs.get(name):
                raise ValueError(f"{name} is {kwargs[name]!r}; this image processor has no such step, leave it out.")
        size = kwargs["size"]
        if kwargs["do_resize"] and not (size.height and size.width):
            raise ValueError(f"size is {dict(size)}; expected height and width.")
        arrays = [np.moveaxis(np.asarray(image), -1, 0) for image in images]  # (3, height, width) each
        return_tensors = kwargs.pop("return_tensors", None)
        mask_threshold = kwargs.pop("mask_threshold")
        data = dict(self._preprocess(arrays, return_tensors=None, **kwargs))
        if segmentation_maps is not None:
            maps = _flatten(segmentation_maps)
            if len(images) > 1 and len(maps) == 1 and getattr(maps[0], "ndim", 0) == 3:
                maps = list(maps[0])  # (batch, height, width)
            if len(maps) != len(images):
                raise ValueError(f"Expected one segmentation map per image, found {len(maps)} for {len(images)}.")
            data["mask_labels"] = [
                self._mask_labels(mask, image, index, mask_threshold, kwargs["do_resize"], size)
                for index, (mask, image) in enumerate(zip(maps, images))
            ]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _mask_labels(
        self, mask: Any, image: Image.Image, index: int, threshold: float, do_resize: bool, size: SizeDict
    ) -> np.ndarray:
        height, width = (size.height, size.width) if do_resize else (image.height, image.width)
        if mask is None:
            return np.zeros((height, width), dtype=np.uint8)
        mask = load_mask(mask)
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"The mask at position {index} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its "
                f"image {image.height} x {image.width}; expected the same size."
            )
        marked = Image.fromarray((mask > threshold).astype(np.uint8) * 255)
        if (width, height) != marked.size:
            marked = marked.resize((width, height), PILImageResampling.BILINEAR)
        return (np.asarray(marked) > 127.5).astype(np.uint8)

    def post_process_anomaly_detection(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float | tuple[float, float] | None = None,
    ) -> list[dict[str, Any]]:
        """
        Model outputs as one result per image.

        Args:
            outputs ([`ViP2ClipAnomalyDetectionOutput`]):
                Output of the model; `scores` and `anomaly_maps` are read.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                Height and width of each original image (upright, see [`load_image`]). Without it maps keep the size
                of the model.
            threshold (`float` or `tuple[float, float]`, *optional*, defaults to 0.5):
                An image or pixel is anomalous when its value is greater than this. A pair gives image and pixel
                threshold apart, such as `(config.image_threshold, config.pixel_threshold)`.

        Returns:
            `list[dict]`: `score` (float in [0, 1]), `label` ("normal" or "anomalous"), `anomaly_map` (float32 tensor
            (height, width) in [0, 1]) and `mask` (bool tensor of the same shape, True for anomalous pixels).

        Raises:
            ValueError: thresholds outside [0, 1], another number of sizes than of images, or a score that is not
                finite.
        """
        pair = tuple(threshold) if isinstance(threshold, (tuple, list)) else (threshold, threshold)
        pair = tuple(0.5 if value is None else value for value in pair)
        if len(pair) != 2 or not all(isinstance(value, Real) and 0 <= value <= 1 for value in pair):
            raise ValueError(f"threshold is {threshold!r}; expected one number in [0, 1] or a pair of them.")
        image_threshold, pixel_threshold = pair
        scores, maps = outputs["scores"].detach(), outputs["anomaly_maps"].detach()
        if target_sizes is not None and len(target_sizes) != len(scores):
            raise ValueError(f"Expected one target size per image, found {len(target_sizes)} for {len(scores)}.")
        results = []
        for index, (score, anomaly_map) in enumerate(zip(scores.float().tolist(), maps.float())):
            if not (np.isfinite(score) and torch.isfinite(anomaly_map).all()):
                raise ValueError(
                    f"The score ({score}) or the map of the image at position {index} is not finite. Either the "
                    "weights are not, or the backbone overflowed in float16: load it in bfloat16 or float32."
                )
            anomaly_map = anomaly_map.clone()  # the outputs stay the caller's
            if target_sizes is not None:
                height, width = (int(side) for side in target_sizes[index])
                anomaly_map = F.interpolate(
                    anomaly_map[None, None], size=(height, width), mode="bilinear", align_corners=False
                )[0, 0]
            results.append(
                {
                    "score": score,
                    "label": LABELS[int(score > image_threshold)],
                    "anomaly_map": anomaly_map,
                    "mask": anomaly_map > pixel_threshold,
                }
            )
        return results


def check_image_processor(image_processor: Any, image_size: int):
    """
    Raises:
        ValueError: an image processor that does not fit a model of this image size.
    """
    if not hasattr(image_processor, "post_process_anomaly_detection"):
        raise ValueError(
            f"Expected a ViP2ClipImageProcessor, found {type(image_processor).__name__}; use "
            f"ViP2ClipImageProcessor(size={image_size})."
        )
    found = {name: value for name, value in dict(image_processor.size).items() if value is not None}
    if not image_processor.do_resize or found != {"height": image_size, "width": image_size}:
        raise ValueError(
            f"The image processor makes images of size {found if image_processor.do_resize else 'as they come'}, the "
            f"model takes {image_size} x {image_size}; use ViP2ClipImageProcessor(size={image_size})."
        )


def _flatten(images: Any) -> list:
    """One image, a list of images or a batch array as a list."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


__all__ = ["ViP2ClipImageProcessor", "check_image_processor"]
