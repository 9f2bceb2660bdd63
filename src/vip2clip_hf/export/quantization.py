"""Convert the linear layers of the vision tower of an exported graph to 8-bit integers."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.vip2clip.image_loading_vip2clip import DEFAULT_TIMEOUT
from ..models.vip2clip.pipeline_inputs_vip2clip import as_inputs, load_with_tiles
from ..models.vip2clip.pipeline_steps_vip2clip import TILES_AT_ONCE
from ..runtime.exported import read_export
from ..utils.extras import extra
from .smoothing import layers_with_massive_inputs, smooth_layers
from .verification import open_onnx


QUANTIZATIONS = ("int8",)
# Photos, or tiles of them, that the ranges are measured on. More change the ranges little.
MAX_CALIBRATION_IMAGES = 64


def check_quantization(name: str | None, photos: Any) -> None:
    """
    Check the arguments of a quantization.

    Args:
        name (`str`, *optional*): type of the integers, `"int8"`.
        photos: photos to measure ranges on.

    Raises:
        ImportError: if onnxruntime is not installed.
        ValueError: if the type is unknown, or one of both is missing.
    """
    if name is None:
        if photos is not None:
            raise ValueError("calibration_photos are given without quantize; expected quantize='int8'.")
        return
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantize is {name!r}; expected {' or '.join(map(repr, QUANTIZATIONS))}.")
    if photos is None:
        raise ValueError(
            f"quantize is {name!r} without calibration_photos; expected photos of your parts, to measure the range of "
            "the values on."
        )
    with extra("export", "Quantization"):
        import onnxruntime.quantization  # noqa: F401


def calibration_values(folder: Path, photos: Any) -> np.ndarray:
    """
    Read photos, or their tiles, as the exported graph gets them.

    Args:
        folder (`pathlib.Path`): folder of an export.
        photos: a folder, or images in any form that the pipeline accepts.

    Returns:
        `np.ndarray` of shape `(num_images, 3, image_size, image_size)`: float32, at most 64 images.

    Raises:
        OSError: if a photo cannot be read.
        ValueError: if there are no photos.
    """
    _, model, preparation = read_export(folder)
    inputs = as_inputs(photos)
    items = inputs if isinstance(inputs, list) else [inputs]
    # Spread over the list, because neighbours are often similar.
    chosen = [items[number] for number in np.unique(np.linspace(0, len(items) - 1, MAX_CALIBRATION_IMAGES).round())
              .astype(int)]  # fmt: skip
    settings = {"tile_size": model.decision.tile_size, "tile_overlap": model.decision.tile_overlap}
    values: list[np.ndarray] = []
    for item in chosen:
        image, boxes = load_with_tiles(item, DEFAULT_TIMEOUT, preparation.reading, settings)
        values.append(preparation.pixel_values([image.crop(box) for box in boxes] or [image]))
    found = np.concatenate(values)
    return found[np.unique(np.linspace(0, len(found) - 1, MAX_CALIBRATION_IMAGES).round()).astype(int)]


def quantize_vision(folder: Path, widths: tuple[int, int], values: np.ndarray) -> dict[str, Any]:
    """
    Replace `model.onnx` by a graph whose vision tower multiplies 8-bit integers.

    Outliers are moved from the inputs to the weights first, see [`smooth_layers`]. The linear layers of the blocks
    have weights in int8 with one scale for each output, and inputs in uint8 with one range for each layer, the
    smallest that contains all values of the photos. Layers with massive activations, attention, norms, the text tower,
    the adapters and the comparison with references remain in float32.

    Args:
        folder (`pathlib.Path`): folder of the export.
        widths (`tuple[int, int]`): `hidden_size` and `intermediate_size` of the vision tower.
        values (`np.ndarray` of shape `(num_images, 3, image_size, image_size)`): photos from [`calibration_values`].

    Returns:
        `dict[str, Any]`: `type`, `num_images`, `num_layers` (linear layers that are quantized), `num_float_layers`
        (those that are not, because of massive activations) and `deviation`, the largest and mean difference of scores
        and maps of the photos from those in float32.

    Raises:
        ValueError: if the graph contains no such layers.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Values(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(values)

        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(self.left, None)
            return None if one is None else {"pixel_values": one[None]}

    path, staged = folder / "model.onnx", folder / "quantized.onnx"
    before = _outputs(folder, values)
    layers = _linear_layers(onnx.load(path, load_external_data=False), widths)
    if not layers:
        raise ValueError(f"The graph has no linear layers of the widths {widths}; expected those of the vision tower.")
    massive = set(layers_with_massive_inputs(path, layers, values))
    layers = [name for name in layers if name not in massive]
    smooth_layers(path, layers, values)
    is_large = (folder / "model.onnx.data").is_file()
    with _without_advice():
        quantize_static(
            str(path),
            str(staged),
            Values(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=is_large,
        )
    os.replace(staged, path)
    if is_large:  # a fourth of the size, so that one file is enough
        graph = onnx.load(path)
        onnx.save(graph, path)
        for name in ("model.onnx.data", "quantized.onnx.data"):
            (folder / name).unlink(missing_ok=True)
    after = _outputs(folder, values)
    differences = {name: np.abs(after[name] - before[name]) for name in before}
    return {
        "type": "int8",
        "num_images": len(values),
        "num_layers": len(layers),
        "num_float_layers": len(massive),
        "deviation": {
            name: {"largest": float(one.max()), "mean": float(one.mean())} for name, one in differences.items()
        },
    }


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Hide the advice of onnxruntime to pre-process the graph, which has no effect on linear layers."""

    def keep(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _linear_layers(graph: Any, widths: tuple[int, int]) -> list[str]:
    """Names of the products of values and a weight of a linear layer of the vision tower."""
    hidden, inner = widths
    expected = {(hidden, hidden), (hidden, inner), (inner, hidden)}
    shapes = {weight.name: tuple(weight.dims) for weight in graph.graph.initializer}
    found = []
    for node in graph.graph.node:
        if node.op_type == "MatMul" and shapes.get(node.input[1]) in expected:
            found.append(node.name)
    return found


def _outputs(folder: Path, values: np.ndarray) -> dict[str, np.ndarray]:
    run, found = open_onnx(folder), []
    for start in range(0, len(values), TILES_AT_ONCE):
        outputs: Sequence[np.ndarray] = run(np.ascontiguousarray(values[start : start + TILES_AT_ONCE]))
        found.append(outputs[:2])
    scores, maps = (np.concatenate(parts) for parts in zip(*found))
    return {"scores": scores, "anomaly_maps": maps}


__all__ = [
    "MAX_CALIBRATION_IMAGES",
    "QUANTIZATIONS",
    "calibration_values",
    "check_quantization",
    "quantize_vision",
]
