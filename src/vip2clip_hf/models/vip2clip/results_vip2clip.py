"""The result for one image: a dict with typed keys that can be written as JSON. Needs numpy and Pillow only."""

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .rle_vip2clip import check_size, decode_rle, encode_rle


# A map in [0, 1] is stored in a 16-bit PNG in steps of 1 / MAP_STEPS.
MAP_STEPS = 65535


class AnomalyRegion(TypedDict):
    """
    A region of a mask: anomalous pixels that are connected by edges or corners.

    Args:
        box (`list[int]`): left, top, right and bottom in pixels. Right and bottom are exclusive.
        area (`int`): number of pixels.
        mean_score (`float`): mean of the anomaly map in the region, in [0, 1].
        peak_score (`float`): maximum of the anomaly map in the region, in [0, 1].
    """

    box: list[int]
    area: int
    mean_score: float
    peak_score: float


class AnomalyDetectionResult(dict[str, Any]):
    """
    Result of [`AnomalyDetectionPipeline`] for one image: a dict that type checkers know the keys of, and that can be
    written as JSON.

    - `score` (`float`): probability that the image is anomalous, in [0, 1].
    - `label` (`str`): `"normal"` or `"anomalous"`, as named in `id2label` of the configuration.
    - `anomaly_map` (`np.ndarray` of shape `(height, width)`): float32 in [0, 1], at the size of the image.
    - `mask` (`np.ndarray` of shape `(height, width)`): bool, `True` for anomalous pixels.
    - `p_value` (`float`, *optional*): probability that a normal image has a score at least as large, in (0, 1]. The
      key exists only for a calibrated checkpoint. The value is `None` if the calibration belongs to other settings.
    - `heatmap` (`PIL.Image.Image`): the image with the map drawn over it. Only if requested.
    - `regions` (`list[AnomalyRegion]`): the regions of the mask, by peak score in descending order. Only if requested.

    Example:

    ```python
    >>> result = detector("photo.jpg", regions=True)
    >>> result["score"]
    >>> result.to_json()
    ```
    """

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, key: Literal["score"], /) -> float: ...
        @overload
        def __getitem__(self, key: Literal["label"], /) -> str: ...
        @overload
        def __getitem__(self, key: Literal["anomaly_map"], /) -> npt.NDArray[np.float32]: ...
        @overload
        def __getitem__(self, key: Literal["mask"], /) -> npt.NDArray[np.bool_]: ...
        @overload
        def __getitem__(self, key: Literal["p_value"], /) -> float | None: ...
        @overload
        def __getitem__(self, key: Literal["heatmap"], /) -> Image.Image: ...
        @overload
        def __getitem__(self, key: Literal["regions"], /) -> list[AnomalyRegion]: ...
        @overload
        def __getitem__(self, key: str, /) -> Any: ...
        def __getitem__(self, key: str, /) -> Any: ...

        # The keys that a result need not have. The other keys, and a default, are those of dict.
        @overload  # type: ignore[override]
        def get(self, key: Literal["p_value"], default: None = None, /) -> float | None: ...
        @overload
        def get(self, key: Literal["heatmap"], default: None = None, /) -> Image.Image | None: ...
        @overload
        def get(self, key: Literal["regions"], default: None = None, /) -> list[AnomalyRegion] | None: ...
        @overload
        def get(self, key: str, default: Any = None, /) -> Any: ...
        def get(self, key: str, default: Any = None, /) -> Any: ...

    # Of a decoded result that contains neither mask nor map.
    _size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image. Raises a `ValueError` if the result has neither mask nor map."""
        for name in ("mask", "anomaly_map"):
            if name in self:
                height, width = self[name].shape
                return int(height), int(width)
        if self._size is None:
            raise ValueError(f"The result has the keys {sorted(self)}; expected mask or anomaly_map, for the size.")
        return self._size

    def copy(self) -> "AnomalyDetectionResult":
        """Return a shallow copy, as of a dict."""
        copied = AnomalyDetectionResult(self)
        copied._size = self._size
        return copied

    def to_dict(
        self,
        mask: Literal["rle", "png"] | None = "rle",
        anomaly_map: Literal["png"] | None = None,
        heatmap: Literal["png"] | None = "png",
    ) -> dict[str, Any]:
        """
        Convert the result to values that JSON can represent. [`decode_result`] is the inverse.

        Args:
            mask (`"rle"`, `"png"` or `None`, defaults to `"rle"`):
                Form of the mask: compressed run-length encoding of COCO, which pycocotools reads, or a gray PNG with 0
                and 255. `None` leaves it out.
            anomaly_map (`"png"` or `None`, defaults to `None`):
                Form of the anomaly map: a 16-bit gray PNG. The map is its value divided by 65535. `None` leaves it
                out.
            heatmap (`"png"` or `None`, defaults to `"png"`):
                Form of the heatmap, if the result has one. `None` leaves it out.

        Returns:
            `dict`:

            - `score` (`float`) and `label` (`str`).
            - `p_value` (`float` or `None`): only if the result has it.
            - `size` (`list[int]`): height and width.
            - `regions` (`list[dict]`): only if the result has them, see [`AnomalyRegion`].
            - `mask`: `{"size": [height, width], "counts": str}` or `{"png": str}`, in base64.
            - `anomaly_map` and `heatmap`: `{"png": str}`, in base64.

        Raises:
            ValueError: if an argument has another value, or a score or map is not finite or outside [0, 1].
        """
        _check_form("mask", mask, ("rle", "png", None))
        _check_form("anomaly_map", anomaly_map, ("png", None))
        _check_form("heatmap", heatmap, ("png", None))
        found: dict[str, Any] = {"score": _finite("score", self["score"]), "label": str(self["label"])}
        if "p_value" in self:
            value = self["p_value"]
            found["p_value"] = None if value is None else _finite("p_value", value)
        found["size"] = list(self.size)
        if "regions" in self:
            found["regions"] = [_region(region) for region in self["regions"]]
        if mask is not None and "mask" in self:
            pixels = _array(self["mask"]) != 0
            found["mask"] = encode_rle(pixels) if mask == "rle" else {"png": _png(pixels.astype(np.uint8) * 255)}
        if anomaly_map is not None and "anomaly_map" in self:
            found["anomaly_map"] = {"png": _png(_map_steps(_array(self["anomaly_map"])))}
        if heatmap is not None and "heatmap" in self:
            found["heatmap"] = {"png": _png(self["heatmap"])}
        return found

    def to_json(
        self,
        mask: Literal["rle", "png"] | None = "rle",
        anomaly_map: Literal["png"] | None = None,
        heatmap: Literal["png"] | None = "png",
        *,
        indent: int | None = None,
    ) -> str:
        """
        Write the result as JSON.

        Args:
            mask, anomaly_map, heatmap: see [`AnomalyDetectionResult.to_dict`].
            indent (`int`, *optional*): spaces per level. By default, everything is in one line.

        Returns:
            `str`: the JSON of [`AnomalyDetectionResult.to_dict`].

        Raises:
            ValueError: see [`AnomalyDetectionResult.to_dict`].
        """
        return json.dumps(self.to_dict(mask, anomaly_map, heatmap), indent=indent, allow_nan=False)


def decode_result(encoded: Mapping[str, Any]) -> AnomalyDetectionResult:
    """
    Read a result that [`AnomalyDetectionResult.to_dict`] converted, for example in a client of a server.

    Args:
        encoded (`Mapping[str, Any]`): the dict, or `json.loads` of the JSON. Other keys are ignored.

    Returns:
        [`AnomalyDetectionResult`]: the result, with the keys that the dict contains. The anomaly map is within
        1 / 131070 of the original.

    Raises:
        ValueError: if a value is missing or not valid, or if the image has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if not isinstance(encoded, Mapping) or "score" not in encoded or "label" not in encoded:
        found = sorted(map(str, encoded)) if isinstance(encoded, Mapping) else type(encoded).__name__
        raise ValueError(f"The result is {str(found)[:200]}; expected a dict with score, label and size.")
    height, width = check_size(encoded.get("size"), Image.MAX_IMAGE_PIXELS)
    result = AnomalyDetectionResult(score=_finite("score", encoded["score"]), label=str(encoded["label"]))
    result._size = (height, width)
    if "anomaly_map" in encoded:
        steps = np.asarray(_image("anomaly_map", encoded["anomaly_map"], (height, width), ("I;16", "I")))
        result["anomaly_map"] = (steps.astype(np.float64) / MAP_STEPS).astype(np.float32)
    if "mask" in encoded:
        form = encoded["mask"]
        if isinstance(form, Mapping) and "counts" in form:
            result["mask"] = decode_rle(form, Image.MAX_IMAGE_PIXELS)
        else:
            result["mask"] = np.asarray(_image("mask", form, (height, width), ("L", "1"))) > 0
        if result["mask"].shape != (height, width):
            raise ValueError(f"mask has shape {result['mask'].shape}; expected {(height, width)}, the size.")
    if "p_value" in encoded:
        value = encoded["p_value"]
        result["p_value"] = None if value is None else _finite("p_value", value)
    if "heatmap" in encoded:
        result["heatmap"] = _image("heatmap", encoded["heatmap"], (height, width), ("RGB",))
    if "regions" in encoded:
        result["regions"] = [_region(region) for region in encoded["regions"]]
    return result


def _check_form(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}.")


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"{name} is {str(value)[:100]}; expected a number in [0, 1].")
    return number


def _region(region: Any) -> AnomalyRegion:
    try:
        left, top, right, bottom = (int(side) for side in region["box"])
        return {
            "box": [left, top, right, bottom],
            "area": int(region["area"]),
            "mean_score": float(region["mean_score"]),
            "peak_score": float(region["peak_score"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"A region is {str(region)[:100]}; expected a dict with box, area, mean_score and peak_score."
        ) from error


def _array(values: Any) -> npt.NDArray[Any]:
    """Convert an array, or a tensor of torch on any device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _map_steps(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    values = values.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():  # also refuses NaN
        raise ValueError("anomaly_map contains values that are not finite or outside [0, 1].")
    return np.rint(values * MAP_STEPS).astype(np.uint16)


def _png(image: Image.Image | npt.NDArray[Any]) -> str:
    """Encode an image as PNG in base64."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _image(name: str, form: Any, size: tuple[int, int], modes: tuple[str, ...]) -> Image.Image:
    """Decode a PNG in base64 and check its size."""
    try:
        content = base64.b64decode(form["png"], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            found = f"a PNG of mode {image.mode} and size {[image.height, image.width]}"
            if image.mode in modes and (image.height, image.width) == size:  # before decoding it
                image.load()
                return image.copy()
    except (
        KeyError, TypeError, ValueError, OSError, SyntaxError, binascii.Error, UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise ValueError(f"{name} cannot be read; expected {{'png': a PNG in base64}}: {error}") from error
    raise ValueError(f"{name} is {found}; expected mode {' or '.join(modes)} and size {list(size)}.")


__all__ = ["AnomalyDetectionResult", "AnomalyRegion", "decode_result"]
