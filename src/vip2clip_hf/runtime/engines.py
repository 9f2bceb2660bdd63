"""Programs that run `model.onnx`: onnxruntime and OpenVINO."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..models.vip2clip.arguments_vip2clip import as_integer
from ..utils.extras import extra


class Engine(Protocol):
    """A loaded graph."""

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """
        Run the graph.

        Args:
            pixel_values (`np.ndarray` of shape `(batch_size, 3, image_size, image_size)`): float32.

        Returns:
            `dict[str, np.ndarray]`: the outputs by name, float32.
        """
        ...


class OnnxRuntimeEngine:
    """
    `model.onnx` in onnxruntime.

    Args:
        path (`pathlib.Path`): the file.
        device (`str`): `"cpu"`, or a name of an execution provider of the installed onnxruntime, such as `"cuda"`.
        threads (`int`, *optional*): number of threads. By default, one for each core.

    Raises:
        ImportError: if onnxruntime is not installed.
        OSError: if the file cannot be loaded.
        ValueError: if the device is not available.
    """

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        with extra("runtime", "The engine onnxruntime"):
            import onnxruntime

        by_device = {
            name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()
        }
        if device not in by_device:
            raise ValueError(f"device is {device!r}; expected {', '.join(map(repr, sorted(by_device)))}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = list(dict.fromkeys((by_device[device], by_device["cpu"])))
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the errors of onnxruntime have no common class
            raise OSError(f"{str(path)!r} cannot be loaded by onnxruntime: {_first_line(error)}") from error
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """Run the graph, see [`Engine`]."""
        return dict(zip(self._names, self._session.run(self._names, {"pixel_values": pixel_values})))


class OpenVinoEngine:
    """
    `model.onnx` in OpenVINO.

    Args:
        path (`pathlib.Path`): the file.
        device (`str`): name of a device of OpenVINO, such as `"cpu"` or `"gpu"`.
        threads (`int`, *optional*): number of threads. By default, one for each core.

    Raises:
        ImportError: if openvino is not installed.
        OSError: if the file cannot be loaded.
        ValueError: if the device is not available.
    """

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        with extra("openvino", "The engine openvino"):
            import openvino

        core = openvino.Core()
        known = [name.lower() for name in core.available_devices]
        if device.partition(".")[0] not in {name.partition(".")[0] for name in known}:
            raise ValueError(f"device is {device!r}; expected {', '.join(map(repr, known))}.")
        # By default, OpenVINO computes in bfloat16 or float16 where the hardware is faster with it.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(core.read_model(str(path)), device.upper(), options)
        except Exception as error:  # RuntimeError for most, with a traceback of C++
            raise OSError(f"{str(path)!r} cannot be loaded by OpenVINO: {_first_line(error)}") from error

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """Run the graph, see [`Engine`]."""
        outputs = self._compiled([pixel_values])
        # A copy, because the next run reuses the memory of the outputs.
        return {output.any_name: np.array(outputs[output]) for output in self._compiled.outputs}


ENGINES: dict[str, Any] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}


def open_engine(path: Path, engine: str, device: str = "cpu", threads: int | None = None) -> Engine:
    """
    Load a graph.

    Args:
        path (`pathlib.Path`): `model.onnx`.
        engine (`str`): `"onnxruntime"` or `"openvino"`.
        device (`str`, defaults to `"cpu"`): device of the engine.
        threads (`int`, *optional*): number of threads. By default, one for each core.

    Returns:
        [`Engine`]: the loaded graph.

    Raises:
        ImportError: if the package of the engine is not installed.
        OSError: if the file cannot be loaded.
        ValueError: if the engine, the device or the number of threads is not possible.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; expected {' or '.join(map(repr, ENGINES))}.")
    if threads is not None:
        threads = as_integer("threads", threads, least=1)
    return ENGINES[engine](path, str(device).lower(), threads)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = ["ENGINES", "Engine", "OnnxRuntimeEngine", "OpenVinoEngine", "open_engine"]
