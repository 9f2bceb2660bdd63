"""Export a model to ONNX or torch.export as one graph from pixel values to scores and anomaly maps."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.pipeline_steps_vip2clip import bank_of, decision_of, score_settings
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.extras import extra
from ..utils.files import apply_umask, check_new_folder, new_folder
from .graph import ExportedDetector
from .quantization import calibration_values, check_quantization, quantize_vision
from .report import describe_export, export_card
from .verification import Run, check_deviation, compare_with_model, open_onnx, open_torch


FORMATS = ("onnx", "torch")
DEFAULT_OPSET = 18
# A protobuf message is limited to 2 GiB. Leave some space for the graph and the names.
_LARGEST_ONNX_FILE = 1_900_000_000


def export_onnx(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    *,
    opset: int = DEFAULT_OPSET,
    references: ReferenceBank | str | None = "auto",
    tolerance: float = 1e-4,
    quantize: str | None = None,
    calibration_photos: Any = None,
) -> dict[str, Any]:
    """
    Export a model to ONNX: one graph from pixel values to scores and anomaly maps, for any batch size.

    The exported graph is run with onnxruntime and compared with the model. If the outputs differ, nothing is written.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model, in float32; it is not changed.
        image_processor ([`ViP2ClipImageProcessor`]):
            The image processor of the model.
        output (`str` or `os.PathLike`):
            Folder to write; must be empty or not exist. Contains `model.onnx`, `config.json`, `decision.json`,
            `preprocessor_config.json`, `export.json` and `README.md`. Weights that are too large for one file are in
            `model.onnx.data`.
        opset (`int`, defaults to 18):
            Version of the ONNX operator set, 18 or newer.
        references ([`ReferenceBank`], *optional*, defaults to `"auto"`):
            Photos of good parts to compare images with. Their features are constants of the graph, and scores and maps
            combine both. `"auto"` uses the references of the checkpoint. `None` uses none.
        tolerance (`float`, defaults to 1e-4):
            Maximum absolute difference of scores and maps from those of the model, before quantization.
        quantize (`str`, *optional*):
            `"int8"` to compute the linear layers of the vision tower with 8-bit integers, see [`quantize_vision`].
            Scores change, so p-values are `None` until the thresholds are calibrated for it.
        calibration_photos (*optional*):
            With `quantize`: photos to measure the range of the values on, a folder or a list of images.

    Returns:
        `dict`: content of `export.json`, and `files` (`dict[str, int]`), the size of each file in bytes.

    Raises:
        ValueError: if the model cannot be exported, `opset` is not supported, the image processor has another size
            than the model, or the references belong to another model or were read with other tiles.
        OSError: if the folder is not empty or cannot be written.
        RuntimeError: if the outputs of the exported graph differ from those of the model.
        ImportError: if onnx, onnxruntime or onnxscript is not installed.
    """
    check_packages("onnx")
    check_opset(opset)
    check_quantization(quantize, calibration_photos)
    vision = model.config.clip_vision_config

    def convert(folder: Path) -> dict[str, Any]:
        values = calibration_values(folder, calibration_photos)
        with _quiet():
            return quantize_vision(folder, (vision.hidden_size, vision.intermediate_size), values)

    def write(detector: ExportedDetector, folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            exported = torch.onnx.export(
                detector,
                **_example(detector),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=list(detector.output_names),
                opset_version=opset,
                verbose=False,
            )
            if exported is None:  # the annotation allows it, for an option that is not used here
                raise RuntimeError("torch.onnx.export returned no program.")
            graph, found = exported.model.graph, exported.model.opset_imports.get("")
            if found != opset:
                raise ValueError(f"opset is {opset}; the installed exporter wrote {found}. Use opset={found}.")
            for node in graph:  # contains file paths of this machine
                node.metadata_props.clear()
            weights = sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
            exported.save(path, external_data=weights > _LARGEST_ONNX_FILE)
        return {"opset": opset}

    more = None if quantize is None else convert
    return _export(model, image_processor, output, "onnx", write, open_onnx, references, tolerance, more)


def export_torch(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    *,
    references: ReferenceBank | str | None = "auto",
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """
    Export a model as a torch.export program, `model.pt2`, that needs only torch.

    `torch.export.load("model.pt2").module()(pixel_values)` returns scores and anomaly maps, for any batch size. The
    program is loaded and compared with the model. If the outputs differ, nothing is written.

    Args:
        model, image_processor, output, references, tolerance:
            See [`export_onnx`].

    Returns:
        `dict`: see [`export_onnx`].

    Raises:
        ValueError, OSError, RuntimeError: see [`export_onnx`].
    """

    def write(detector: ExportedDetector, folder: Path) -> dict[str, Any]:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(detector, **_example(detector), strict=False)
            for part in program.graph_module.modules():
                for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                    node.meta.pop("stack_trace", None)  # contains file paths of this machine
            program.example_inputs = None
            torch.export.save(program, folder / "model.pt2")
        return {}

    return _export(model, image_processor, output, "torch", write, open_torch, references, tolerance)


def check_format(name: str) -> None:
    """
    Check the name of a format.

    Args:
        name (`str`): "onnx" or "torch".

    Raises:
        ValueError: if the format is unknown.
    """
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; expected {' or '.join(map(repr, FORMATS))}.")


def check_opset(opset: int) -> None:
    """
    Check the version of the ONNX operator set.

    Args:
        opset (`int`): version, 18 or newer.

    Raises:
        ValueError: if the version is older than 18, or newer than the installed onnx supports.
        ImportError: if onnx is not installed.
    """
    with extra("export", "Export to ONNX"):
        import onnx

    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or isinstance(opset, bool) or not DEFAULT_OPSET <= opset <= newest:
        raise ValueError(f"opset is {opset!r}; expected an integer from {DEFAULT_OPSET} to {newest}.")


def check_packages(name: str) -> None:
    """
    Check that the packages needed for a format are installed.

    Args:
        name (`str`): "onnx" or "torch".

    Raises:
        ImportError: if a package is not installed.
    """
    if name == "onnx":
        with extra("export", "Export to ONNX"):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401


def _export(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    name: str,
    write: Callable[[ExportedDetector, Path], dict[str, Any]],
    load: Callable[[Path], Run],
    references: ReferenceBank | str | None,
    tolerance: float,
    convert: Callable[[Path], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the graph with `write`, load it with `load`, compare it with the model and add the other files. `convert`
    then changes the graph."""
    check_new_folder(output)
    check_image_processor(image_processor, model.config.image_size)
    if isinstance(references, str) and references != "auto":
        raise ValueError(f"references is {references!r}; expected a ReferenceBank, 'auto' or None.")
    bank = bank_of(model, {"references": references})
    settings = score_settings(model, {"references": bank})
    detector = ExportedDetector(model, bank)
    with new_folder(output) as folder:
        details = write(detector, folder)
        deviation = compare_with_model(load(folder), model, image_processor, bank)
        check_deviation(deviation, name, tolerance)
        model.config.save_pretrained(folder)
        # Those of the checkpoint, unless its thresholds belong to other references.
        decision = decision_of(model, {"references": bank})[0]
        if (decision.calibration or {}).get("method") == "left-out":
            decision = decision.without_calibration()  # the report contains the scores
        decision.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        report = describe_export(model, name, details, deviation, tolerance, settings, bank)
        (folder / "export.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if convert is not None:
            report["quantization"] = convert(folder)
            report["runtime"]["fingerprint"]["dtype"] = report["quantization"]["type"]
            (folder / "export.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(export_card(report, image_processor), encoding="utf-8")
        apply_umask(folder)
    return {**report, "files": {path.name: path.stat().st_size for path in sorted(Path(output).iterdir())}}


def _example(detector: ExportedDetector) -> dict[str, Any]:
    """Return the example input of the exporters and its dynamic batch axis."""
    size = detector.model.config.image_size
    batch = torch.export.Dim("batch_size", min=1)
    return {"args": (torch.zeros(2, 3, size, size),), "dynamic_shapes": {"pixel_values": {0: batch}}}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings, logs and prints of the exporters."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), open(os.devnull, "w", encoding="utf-8") as nowhere:
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            with contextlib.redirect_stdout(nowhere):
                yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


__all__ = ["export_onnx", "export_torch"]
