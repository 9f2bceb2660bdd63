"""Image processor of ViP²-CLIP: photos to pixel values, masks to labels, model outputs to results at photo size."""

import os
from io import BytesIO
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack


DEFAULT_TIMEOUT = 60.0
# Floats may leave [0, 1] by this much.
ROUNDING = 1e-3
LABELS = ("normal", "anomalous")
IMAGE_EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga"}
    | {".tif", ".tiff", ".webp"}
)


class ViP2ClipImageProcessorKwargs(ImagesKwargs, total=False):
    """
    mask_threshold (`int` or `float`, *optional*, defaults to 0):
        Mask pixels greater than this are anomalous. Lossy masks (JPEG) want 127.
    """

    mask_threshold: int | float


def _describe(image: Any) -> str:
    if isinstance(image, Image.Image):
        return f"{image.mode} image of {image.width} x {image.height} pixels"
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{image.dtype} array of shape {tuple(image.shape)}"
    return repr(image)


def load_image(image: Any, timeout: float | None = DEFAULT_TIMEOUT) -> Image.Image:
    """
    Anything that shows one image as an upright 8-bit RGB image.

    Files with more than 8 bits are scaled, not cut off; EXIF orientation is applied; transparency is dropped.

    Args:
        image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            Path, http(s) URL, image, or array of shape (height, width), (height, width, channels) or (channels,
            height, width) with 1, 3 or 4 channels, or an undecoded image of `datasets`, a dict with `bytes` or `path`.
            Arrays hold 8-bit values in an integer type, 16-bit values in uint16, booleans, or floats in [0, 1].
            Pillow's mode "I" is read as 16 bits, which is how it reads such files.
        timeout (`float`, *optional*, defaults to 60):
            Seconds a server may be silent before a URL is given up; `None` waits forever.

    Returns:
        `PIL.Image.Image`: mode RGB.

    Raises:
        OSError: a file that is missing, truncated or no image, or a URL that cannot be read.
        ValueError: an array of another shape, type or range, an image without pixels, or values that are not finite.
    """
    if isinstance(image, (str, os.PathLike)):
        return _upright_rgb(_open(os.fspath(image), timeout), os.fspath(image))
    if isinstance(image, dict) and (image.get("bytes") is not None or image.get("path") is not None):
        return _upright_rgb(_open_undecoded(image, timeout), str(image.get("path") or "the image"))
    if isinstance(image, Image.Image):
        return _upright_rgb(image, "the image")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    raise ValueError(f"Expected a path, a URL, a PIL image or an array, found {type(image).__name__}.")


def _open_undecoded(image: dict[str, Any], timeout: float | None) -> Image.Image:
    """An image as `datasets` stores it."""
    content, path = image.get("bytes"), image.get("path")
    return _open(os.fspath(path), timeout) if content is None else _decode(BytesIO(content), repr(path or "in memory"))


def _open(source: str, timeout: float | None) -> Image.Image:
    shown = repr(source if len(source) <= 200 else f"{source[:100]}...")
    if source.lower().startswith(("http://", "https://")):
        try:
            response = httpx.get(source, timeout=timeout, follow_redirects=True)
            response.raise_for_status()
        except Exception as error:  # the HTTP client's own errors, which are no OSError
            reason = str(error).partition("\n")[0]
            raise OSError(f"Image {shown} could not be fetched ({reason}); check address and connection.") from error
        return _decode(BytesIO(response.content), shown)
    if os.path.isdir(source):
        raise OSError(f"{shown} is a folder; expected an image file.")
    return _decode(source, shown)


def _decode(source: str | BytesIO, shown: str) -> Image.Image:
    try:
        image = Image.open(source)
        # Pillow itself only warns up to twice the limit, and the warning is lost in most programs.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image file {shown} not found; check the path.") from error
    except UnidentifiedImageError as error:
        raise OSError(f"{shown} is no image that can be read; expected a format Pillow knows.") from error
    except Image.DecompressionBombError as error:
        raise OSError(
            f"Image {shown} is too large: it has more pixels than allowed. The limit is "
            f"{Image.MAX_IMAGE_PIXELS:,} pixels; to read it all the same raise it, with PIL.Image.MAX_IMAGE_PIXELS = "
            "... or --max-pixels."
        ) from error
    except Exception as error:  # whatever Pillow's decoders raise on broken files
        raise OSError(f"Image {shown} could not be decoded ({error}); it may be truncated or damaged.") from error
    return image


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels; expected at least one.")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            # Pillow's own conversion to 8 bits cuts off at 255. "I" is how 16-bit files can arrive as well.
            array = np.asarray(image)
            return _array_to_rgb(array if image.mode == "F" else _as_uint16(array, name))
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise OSError(f"{name} could not be decoded ({error}); the file may be truncated or damaged.") from error


def _as_uint16(array: np.ndarray, name: str) -> np.ndarray:
    if array.min() < 0 or array.max() > 65535:
        raise ValueError(f"{name} has values from {array.min()} to {array.max()}; expected 16 bits, 0 to 65535.")
    return array.astype(np.uint16)


def _array_to_rgb(array: np.ndarray) -> Image.Image:
    found = _describe(array)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(
            f"Expected an array of shape (height, width), (height, width, channels) or (channels, height, width) with "
            f"1, 3 or 4 channels, found {found}."
        )
    if array.size == 0:
        raise ValueError(f"Expected an image with at least one pixel, found {found}.")

    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # whatever the byte order
        array = np.rint(array / 257.0).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"Expected 8-bit values 0 to 255, found {found} with values from {array.min()} to {array.max()}; "
                "16-bit images need the type uint16."
            )
        array = array.astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError(f"Expected finite pixel values, found NaN or infinity in a {found}.")
        if array.min() < -ROUNDING or array.max() > 1 + ROUNDING:
            raise ValueError(
                f"Expected floats in [0, 1], found {found} with values from {array.min():g} to {array.max():g}; "
                "convert 0 to 255 to uint8."
            )
        array = np.rint(array.clip(0, 1) * 255.0).astype(np.uint8)
    else:
        raise ValueError(f"Expected numbers, found {found}.")
    return Image.fromarray(np.ascontiguousarray(array[..., :3] if array.ndim == 3 else array)).convert("RGB")


def list_images(folder: str | os.PathLike) -> list[str]:
    """
    Paths of the image files directly in a folder, sorted by name; hidden ones are left out.

    Raises:
        ValueError: the folder has none.
    """
    with os.scandir(folder) as entries:
        files = sorted(entry.path for entry in entries if entry.is_file() and not entry.name.startswith("."))
    found = [path for path in files if os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS]
    if not found:
        raise ValueError(
            f"Folder {os.fspath(folder)!r} has no image files; expected files such as .png, .jpg or .tif directly in "
            "it."
        )
    return found


def load_mask(mask: Any) -> np.ndarray:
    """
    A mask as it is stored, one value a pixel.

    Args:
        mask (`str`, `os.PathLike`, `dict`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            File, image, or array with one channel, or an undecoded image of `datasets`. Colours and palettes count by
            their grey value.

    Returns:
        `np.ndarray` of shape `(height, width)`, in the type of the file or array.

    Raises:
        OSError: a file that cannot be read.
        ValueError: an array of another shape, or values that are not finite.
    """
    if isinstance(mask, (str, os.PathLike)):
        mask = _open(os.fspath(mask), DEFAULT_TIMEOUT)
    if isinstance(mask, dict):
        mask = _open_undecoded(mask, DEFAULT_TIMEOUT)
    if isinstance(mask, Image.Image):
        mask = ImageOps.exif_transpose(mask)
        if not (mask.mode.startswith("I") or mask.mode == "F"):
            mask = mask.convert("L")
        return np.asarray(mask)
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
        mask = (mask.float() if mask.is_floating_point() else mask).numpy()
    mask = np.asarray(mask)
    found = _describe(mask)
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[-1]):
        mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    if mask.ndim != 2:
        raise ValueError(f"Expected a mask of shape (height, width), found {found}.")
    if np.issubdtype(mask.dtype, np.floating) and not np.isfinite(mask).all():
        raise ValueError(f"Expected finite mask values, found NaN or infinity in a {found}.")
    return mask


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


__all__ = [
    "DEFAULT_TIMEOUT",
    "IMAGE_EXTENSIONS",
    "ViP2ClipImageProcessor",
    "check_image_processor",
    "list_images",
    "load_image",
    "load_mask",
]
