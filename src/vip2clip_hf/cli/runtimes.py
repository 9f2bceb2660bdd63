"""Predict with an exported model, for `vip2clip predict --runtime`. Imports neither torch nor transformers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.extras import require
from .options import usage_error


# Engine by the name that the option takes.
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}


def _known(value: str | None) -> str | None:
    if value is not None and value not in ENGINES:
        raise usage_error(f"--runtime is {value!r}; expected {', '.join(ENGINES)}.")
    return value


Runtime = Annotated[
    str | None,
    typer.Option(
        metavar="ENGINE",
        help="Run an exported model without PyTorch: onnx or openvino. --model is then the folder of the export.",
        show_default="PyTorch",
        callback=_known,
    ),
]


def check_runtime(
    runtime: str | None,
    model: str | None,
    output: Path | None,
    backbone: str | None,
    references: Path | None,
    dtype: str,
) -> None:
    """
    Check that the other options can be used with `--runtime`.

    Args:
        runtime (`str`, *optional*): value of the option.
        model, output, backbone, references, dtype: values of the other options.

    Raises:
        typer.BadParameter: if they cannot.
    """
    if runtime is None:
        return
    if model is None:
        raise usage_error("--runtime needs --model EXPORT, a folder that vip2clip export has written.")
    given = {"--output": output, "--backbone": backbone, "--references": references}
    given["--dtype"] = None if dtype == "float32" else dtype
    for name, value in given.items():
        if value is not None:
            raise usage_error(f"{name} cannot be used with --runtime; omit it, or omit --runtime.")


def runtime_options(options: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the options of a command to arguments of [`OnnxDetector`].

    Args:
        options (`dict[str, Any]`): options as for [`AnomalyDetectionPipeline.from_pretrained`], see [`check_runtime`].

    Returns:
        `dict[str, Any]`: the arguments.
    """
    # check_runtime has refused other values of these.
    kept = {name: value for name, value in options.items() if name not in ("dtype", "backbone", "runtime")}
    return {**kept, "device": kept.get("device") or "cpu"}


def check_export(folder: str, runtime: str) -> None:
    """
    Check an export and its engine before the graph is loaded.

    Args:
        folder (`str`): folder of the export.
        runtime (`str`): value of `--runtime`.

    Raises:
        ImportError: if the package of the engine is not installed.
        OSError: if the folder is not an export.
    """
    from ..runtime.exported import read_export

    require("runtime" if runtime == "onnx" else runtime, f"--runtime {runtime}", ENGINES[runtime], load=False)
    read_export(folder)


def open_runtime(folder: str, runtime: str, options: dict[str, Any]) -> Any:
    """
    Load an exported model.

    Args:
        folder (`str`): folder of the export.
        runtime (`str`): value of `--runtime`.
        options (`dict[str, Any]`): the other options, as for [`AnomalyDetectionPipeline.from_pretrained`].

    Returns:
        [`OnnxDetector`]: the detector, with the methods of the pipeline that the command uses.

    Raises:
        ImportError: if the package of the engine is not installed.
        OSError: if the folder is not an export.
        ValueError: if a setting is not allowed.
    """
    from ..runtime.detector import OnnxDetector

    detector = OnnxDetector(folder, engine=ENGINES[runtime], **runtime_options(options))
    detector.score_settings()  # an error of settings is not one of a photo
    return detector


__all__ = ["ENGINES", "Runtime", "check_export", "check_runtime", "open_runtime", "runtime_options"]
