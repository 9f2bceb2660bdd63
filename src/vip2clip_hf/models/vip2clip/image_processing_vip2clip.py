"""Image processor of ViP²-CLIP: prepares images and masks, and converts model outputs to results at image size."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack  # type: ignore[attr-defined]  # typing: from 3.11
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .arguments_vip2clip import READING_ARGUMENTS, label_names, threshold_pair
from .backbone_vip2clip import HUB_KWARGS
from .decision_config_vip2clip import DecisionConfig
from .decision_vip2clip import as_result, decide
from .fingerprint_vip2clip import is_plain_call
from .image_loading_vip2clip import read_image
from .image_values_vip2clip import as_channels_first, as_list, warn_unclear_stack
from .mask_loading_vip2clip import mask_labels
from .mask_options_vip2clip import DEFAULT_MASK_OPTIONS, MASK_OPTIONS, MaskOptions, check_mask_option
from .model_values_vip2clip import model_values
from .processor_arguments_vip2clip import PROCESSOR_ARGUMENTS


# Entries of preprocessor_config.json that are not options.
METADATA = ("auto_map", "feature_extractor_type", "image_processor_type", "processor_class")
ARGUMENTS = {**PROCESSOR_ARGUMENTS, **dict.fromkeys(MASK_OPTIONS.values(), check_mask_option)}


class ViP2ClipImageProcessorKwargs(ImagesKwargs, total=False):
    """
    mask_threshold (`int` or `float`, *optional*, defaults to 0):
        Mask pixels with a value greater than this are anomalous. Use 127 for lossy masks (JPEG).
    mask_channel (`str`, *optional*, defaults to `"auto"`):
        Where the values of a mask come from.
    mask_invert (`bool`, *optional*, defaults to `False`):
        Whether the defect is dark on a bright background.
    mask_orientation (`str`, *optional*, defaults to `"auto"`):
        EXIF orientation of masks without one of their own.
    keep_small_regions (`bool`, *optional*, defaults to `True`):
        Whether regions that vanish at the size of the model keep at least one pixel.
    bit_depth (`int`, *optional*):
        Bits per value, from 8 to 16, of images that store more than 8, see [`load_image`].
    page (`int`, *optional*):
        Page of files with several pages, from 1, see [`load_image`].
    channel_order (`"rgb"` or `"bgr"`, *optional*, defaults to `"rgb"`):
        Order of the channels of arrays.
    """

    mask_threshold: int | float
    mask_channel: str
    mask_invert: bool
    mask_orientation: str
    keep_small_regions: bool
    bit_depth: int
    page: int
    channel_order: str


class ViP2ClipImageProcessor(PilBackend):
    r"""
    Image processor of ViP²-CLIP.

    Prepares images and masks for the model, and converts the outputs of the model to results at the size of the
    images. It loads images as upright 8-bit RGB (see [`load_image`]), resizes them to a square with bicubic
    interpolation, without keeping the aspect ratio, and normalizes them with CLIP's mean and standard deviation. It
    uses Pillow and NumPy on the CPU, even if torchvision is installed.

    All arguments are also arguments of a call. `None` stands for the default, in a call for the value of the image
    processor.

    Args:
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Whether to convert images to RGB. If `False`, images keep their 1, 3 or 4 channels, and modes other than
            1, L, RGB and RGBA are an error. `image_mean` and `image_std` must have as many values as channels.
        do_resize (`bool`, *optional*, defaults to `True`):
            Whether to resize images to `size`.
        size (`int`, `tuple[int, int]` or `dict[str, int]`, *optional*, defaults to `{"height": 518, "width": 518}`):
            Size of `pixel_values`: side of a square, a pair of height and width, or a dict with both. Must match the
            `image_size` of the model.
        resample (`PIL.Image.Resampling` or `int`, *optional*, defaults to bicubic):
            Interpolation used to resize images.
        do_rescale (`bool`, *optional*, defaults to `True`):
            Whether to multiply the 8-bit pixel values, from 0 to 255, by `rescale_factor`. If `False`, they stay from
            0 to 255, and those of float images from 0 to 1.
        rescale_factor (`float`, *optional*, defaults to 1/255):
            Factor applied to the 8-bit pixel values, greater than 0. Also applied to float images, which are converted
            to 8 bits first.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to normalize images with `image_mean` and `image_std`.
        image_mean, image_std (`float` or `list[float]`, *optional*, default to the values of CLIP):
            Mean and standard deviation, of all channels or per channel. Standard deviations must be greater than 0.
        input_data_format (`"channels_first"` or `"channels_last"`, *optional*):
            Axis of the channels in arrays. By default, it is inferred from the shape. Only for arrays.
        return_tensors (`"pt"` or `"np"`, *optional*):
            Type of the returned tensors. By default, lists of arrays.
        mask_threshold (`int` or `float`, *optional*, defaults to 0):
            Mask pixels with a value greater than this are anomalous. Use 127 for lossy masks (JPEG).
        mask_channel, mask_invert, mask_orientation, keep_small_regions (*optional*):
            How masks are read and resized, see [`MaskOptions`].
        bit_depth, page, channel_order (*optional*):
            Bits per value, page and order of channels, see [`load_image`]. Unclear images are refused by default.
        kwargs:
            Other arguments of transformers' image processors are allowed if they change nothing, such as
            `do_pad=False`, `default_to_square=True`, `data_format="channels_first"` and `device="cpu"`. Cropping,
            padding and sizes that keep the aspect ratio are not supported.

    Raises:
        ValueError: if an argument is unknown, not supported or out of range. Also in a call.

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
    mask_channel = "auto"
    mask_invert = False
    mask_orientation = "auto"
    keep_small_regions = True
    bit_depth: int | None = None
    page: int | None = None
    channel_order: str | None = None

    def __init__(self, **kwargs: Unpack[ViP2ClipImageProcessorKwargs]) -> None:
        given: dict[str, Any] = {name: value for name, value in kwargs.items() if value is not None}
        metadata = {name: given.pop(name) for name in list(given) if name in METADATA or name.startswith("_")}
        super().__init__(**metadata, **self._checked(given))
        self.decision = DecisionConfig()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        decision: DecisionConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Load the image processor of a checkpoint, and the settings of its decisions.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder, file or Hub id.
            decision ([`DecisionConfig`], *optional*): settings of decisions to use instead of those in the checkpoint.
            args, kwargs: arguments of `ImageProcessingMixin.from_pretrained`, and of the image processor.

        Returns:
            [`ViP2ClipImageProcessor`]: the image processor. With `return_unused_kwargs=True`, a tuple of the image
            processor and the unused arguments.

        Raises:
            OSError: if the checkpoint is not found or damaged.
            ValueError: if an argument or a value is not allowed.
        """
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if decision is None:
            names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
            hub_kwargs = {name: value for name, value in kwargs.items() if name in HUB_KWARGS}
            decision = DecisionConfig.from_pretrained(
                pretrained_model_name_or_path, **{**dict(zip(names, args)), **hub_kwargs}
            )
        (loaded[0] if isinstance(loaded, tuple) else loaded).decision = decision
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """Return the options, for `preprocessor_config.json`. `decision` is stored in a file of its own."""
        content = super().to_dict()
        content.pop("decision", None)
        for name, default in DEFAULT_MASK_OPTIONS.columns().items():
            if name != "mask_threshold" and content.get(name) == default:  # earlier versions do not know the others
                content.pop(name)
        return content

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """Check options, none of them None, and convert them to the types that the library expects."""
        checked: dict[str, Any] = {}
        for name, value in options.items():
            if name in ARGUMENTS:
                checked[name] = ARGUMENTS[name](name, value)
            elif name not in self.valid_kwargs.__annotations__:
                expected = ", ".join(ARGUMENTS)
                raise ValueError(f"{name!r} is not an argument of {type(self).__name__}; expected {expected}.")
            elif value is not False:
                raise ValueError(
                    f"{name} is {value!r}, but this image processor does not support it; remove the argument."
                )
        if isinstance(checked.get("size"), int):
            if not checked.get("default_to_square", self.default_to_square):
                raise ValueError(f"size is {checked['size']} with default_to_square=False; expected height and width.")
            checked["size"] = {"height": checked["size"], "width": checked["size"]}
        return checked

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[ViP2ClipImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepare images, and optionally their masks, for the model.

        Args:
            images:
                An image or a list of images: paths, URLs, PIL images or arrays, see [`load_image`]. An array with
                four axes is a batch of images.
            segmentation_maps (*optional*):
                One mask per image: paths, PIL images or arrays of shape (height, width), or a stacked array. Use
                `None` for an image without a mask. A mask must have the same size as its image. Pixels with a value
                greater than `mask_threshold` are anomalous, see [`load_mask`] for colours and palettes. Masks are
                resized bilinearly and thresholded at one half, as in the released code; regions that would vanish
                are kept, see `keep_small_regions`.
            return_tensors (`"pt"` or `"np"`, *optional*):
                Type of the returned tensors.
            kwargs:
                Arguments of the image processor, to use other values for this call.

        Returns:
            `BatchFeature`: a dict with these tensors:

            - `pixel_values` of shape `(batch_size, 3, height, width)`, float32.
            - `mask_labels` of shape `(batch_size, height, width)`, uint8, 1 for anomalous pixels. Only with
              `segmentation_maps`. All 0 for an image without a mask.

        Raises:
            OSError: if an image or mask cannot be read.
            ValueError: if an image or mask is of another kind, a pixel or a pixel value is not finite, there are no
                images, the number or size of images and masks differ, or an argument is unknown, not supported or out
                of range.
        """
        image_like_kwargs = {} if segmentation_maps is None else {"segmentation_maps": segmentation_maps}
        given = {name: value for name, value in kwargs.items() if value is not None}
        own = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__ if name not in given}
        checked = self._checked({**given, **{name: value for name, value in own.items() if value is not None}})
        return super().preprocess(images, image_like_kwargs=image_like_kwargs, **checked)

    def _preprocess_image_like_inputs(
        self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs: Any
    ) -> BatchFeature:
        convert_rgb, given_format = kwargs["do_convert_rgb"], kwargs["input_data_format"]
        input_data_format = None if given_format is None else str(given_format.value)
        reading = {name: kwargs.pop(name, None) for name in READING_ARGUMENTS}
        if input_data_format is None:
            warn_unclear_stack(images)
        given = as_list(images)
        loaded = [
            read_image(image, convert_rgb=convert_rgb, input_data_format=input_data_format, **reading)
            for image in given
        ]
        if not loaded:
            raise ValueError("Expected at least one image, found an empty list.")
        size = (kwargs["size"].height, kwargs["size"].width) if kwargs["do_resize"] else None
        scaling = {"factor": kwargs["rescale_factor"] if kwargs["do_rescale"] else None}
        if kwargs["do_normalize"]:
            scaling.update(mean=kwargs["image_mean"], std=kwargs["image_std"])
        return_tensors = kwargs.pop("return_tensors")
        options = MaskOptions.named({name: kwargs.pop(name, None) for name in MASK_OPTIONS.values()})
        data = {
            "pixel_values": [
                model_values(as_channels_first(image, size, kwargs["resample"]), is_float, index, **scaling)
                for index, (image, is_float) in enumerate(loaded)
            ]
        }
        if segmentation_maps is not None:
            maps = as_list(segmentation_maps)
            if len(loaded) > 1 and len(maps) == 1 and getattr(maps[0], "ndim", 0) == 3:
                maps = list(maps[0])  # (batch, height, width)
            if len(maps) != len(loaded):
                raise ValueError(f"Expected one segmentation map per image, found {len(maps)} for {len(loaded)}.")
            data["mask_labels"] = [
                mask_labels(mask, options, original, (image.height, image.width), size, index).labels
                for index, (mask, original, (image, _)) in enumerate(zip(maps, given, loaded))
            ]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def post_process_anomaly_detection(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float | tuple[float | None, float | None] | None = None,
        id2label: Mapping[Any, str] | None = None,
        decision: DecisionConfig | None = None,
        calibrated: bool | None = None,
    ) -> list[dict[str, Any]]:
        """
        Convert the outputs of the model to one result per image. [`decide`] makes the decisions.

        Args:
            outputs ([`ViP2ClipAnomalyDetectionOutput`]):
                Outputs of the model, or a dict with `scores` and `anomaly_maps`.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                Height and width of each original image, after the EXIF orientation is applied (see [`load_image`]).
                The maps are resized to these sizes. By default, they have the `image_size` of the model.
            threshold (`float` or `tuple[float, float]`, *optional*):
                An image or pixel is anomalous if its score is greater than the threshold. Pass a pair to use different
                thresholds for images and pixels. `None`, also in a pair, is the threshold of `decision`.
            id2label (`Mapping[int, str]`, *optional*, defaults to `{0: "normal", 1: "anomalous"}`):
                Names of the labels, for example `config.id2label`. 0 is normal, 1 anomalous.
            decision ([`DecisionConfig`], *optional*):
                Thresholds, minimum area of a region and calibration, for example `model.decision`. By default,
                `decision` of the image processor: that of the checkpoint it was loaded from, otherwise thresholds of
                0.5.
            calibrated (`bool`, *optional*):
                Whether the calibration belongs to these outputs. If not, there are no p-values. By default, the
                outputs are expected to be those of the calibrated model, called without `top_k`. With a calibration
                for tiles or another top-k, a warning is logged.

        Returns:
            `list[dict]`: one dict per image:

            - `score` (`float`): image score, in [0, 1].
            - `label` (`str`): `"normal"` or `"anomalous"`, or the name in `id2label`.
            - `anomaly_map` (`torch.FloatTensor` of shape `(height, width)`): anomaly map, float32 in [0, 1].
            - `mask` (`torch.BoolTensor` of shape `(height, width)`): `True` for anomalous pixels.
            - `p_value` (`float`): probability that a normal image has a score at least as large. Only with the scores
              of a calibration. `None` if it belongs to other scores.

        Raises:
            ImportError: if scipy is not installed and the minimum area of a region is greater than one pixel.
            ValueError: if a threshold is outside [0, 1], `id2label` has no names for 0 and 1, the number of sizes and
                images differ, or a score or map is not finite.
        """
        decision = self.decision if decision is None else decision
        threshold = threshold_pair(threshold, (decision.image_threshold, decision.pixel_threshold))
        if calibrated is None:
            calibrated = is_plain_call(decision)
        names = label_names(id2label)
        scores, maps = outputs["scores"].detach(), outputs["anomaly_maps"].detach()
        if target_sizes is not None and len(target_sizes) != len(scores):
            raise ValueError(f"Expected one target size per image, found {len(target_sizes)} for {len(scores)}.")
        results = []
        for index, (score, anomaly_map) in enumerate(zip(scores.float().tolist(), maps.float())):
            if not (np.isfinite(score) and torch.isfinite(anomaly_map).all()):
                raise ValueError(
                    f"The score ({score}) or the map of the image at position {index} is not finite. Check the "
                    "weights. In float16, CLIP can overflow; load the model in bfloat16 or float32."
                )
            size = None
            if target_sizes is not None:
                height, width = target_sizes[index]
                size = (int(height), int(width))
            # The small map is moved to the CPU, where decisions are made.
            found = decide(
                score, anomaly_map.cpu().numpy(), decision, size=size, threshold=threshold, calibrated=calibrated
            )
            result = as_result(score, found, names, decision)
            device = anomaly_map.device
            result.update({name: torch.from_numpy(result[name]).to(device) for name in ("anomaly_map", "mask")})
            results.append(result)
        return results


def check_image_processor(image_processor: Any, image_size: int) -> None:
    """
    Check that an image processor produces images of the size a model expects.

    Args:
        image_processor: the image processor.
        image_size (`int`): `image_size` of the model.

    Raises:
        ValueError: if it is not a [`ViP2ClipImageProcessor`], or produces images of another size.
    """
    if not hasattr(image_processor, "post_process_anomaly_detection"):
        raise ValueError(
            f"Expected a ViP2ClipImageProcessor, found {type(image_processor).__name__}; use "
            f"ViP2ClipImageProcessor(size={image_size})."
        )
    found = {name: value for name, value in dict(image_processor.size).items() if value is not None}
    if not image_processor.do_resize or found != {"height": image_size, "width": image_size}:
        problem = f"produces images of size {found}" if image_processor.do_resize else "does not resize images"
        raise ValueError(
            f"The image processor {problem}, but the model takes {image_size} x {image_size}; use "
            f"ViP2ClipImageProcessor(size={image_size})."
        )


__all__ = ["ViP2ClipImageProcessor", "check_image_processor"]
