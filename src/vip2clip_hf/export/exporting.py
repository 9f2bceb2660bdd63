"""Export a checkpoint as one graph from pixel values to scores and maps: ONNX, or a program of torch.export."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.extras import extra
from ..utils.files import check_new_folder, new_folder, umask
from .graph import ExportedDetector
from .report import describe_export, export_card
from .verification import OUTPUTS, check_deviation, compare_with_model, open_onnx, open_torch


FORMATS = ("onnx", "torch")
DEFAULT_OPSET = 18
# One protobuf message holds less than 2 GiB; graph and names need some of it.
_LARGEST_ONNX_FILE = 1_900_000_000


def export_onnx(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    *,
    opset: int = DEFAULT_OPSET,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """
    Write `model.onnx` with what is needed to use it: from pixel values to scores and maps, with batches of any size.

    It is run with onnxruntime and compared with the model before it is put in place.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model, in float32; it is left as it is.
        image_processor ([`ViP2ClipImageProcessor`]):
            Its image processor.
        output (`str` or `os.PathLike`):
            Folder to write; must be empty or not exist. `model.onnx` (weights beside it in `model.onnx.data` where
            one file would be too large), `config.json`, `preprocessor_config.json`, `export.json`, `README.md`.
        opset (`int`, defaults to 18):
            Version of ONNX's operators, 18 or newer.
        tolerance (`float`, defaults to 1e-4):
            How far scores and maps may be from the model's.

    Returns:
        `dict`: what stands in `export.json`, and `files` (`dict[str, int]`), their sizes in bytes.

    Raises:
        ValueError: a model that cannot be exported, an opset that is not known, an image processor that does not fit.
        OSError: the folder is not empty or cannot be written.
        RuntimeError: the exported file gives other numbers. Nothing is left in the folder.
        ImportError: onnx, onnxruntime or onnxscript is missing.
    """
    check_packages("onnx")
    check_opset(opset)

    def write(detector: ExportedDetector, folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            exported = torch.onnx.export(
                detector,
                **_example(detector),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=list(OUTPUTS),
                opset_version=opset,
                verbose=False,
            )
            graph, found = exported.model.graph, exported.model.opset_imports.get("")
            if found != opset:
                raise ValueError(f"opset is {opset}; the installed exporter wrote {found}. Leave it out or take that.")
            for node in graph:  # where in which file of this machine each came from
                node.metadata_props.clear()
            weights = sum(value.const_value.nbytes for value in graph.initializers.values())
            exported.save(path, external_data=weights > _LARGEST_ONNX_FILE)
        return {"opset": opset}

    return _export(model, image_processor, output, "onnx", write, open_onnx, tolerance)


def export_torch(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    *,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """
    Write `model.pt2`, a program of torch.export: `torch.export.load("model.pt2").module()(pixel_values)` gives scores
    and maps, with batches of any size, where only torch is installed.

    It is loaded again and compared with the model before it is put in place.

    Args:
        model, image_processor, output, tolerance:
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
                    node.meta.pop("stack_trace", None)  # where in which file of this machine it came from
            program.example_inputs = None
            torch.export.save(program, folder / "model.pt2")
        return {}

    return _export(model, image_processor, output, "torch", write, open_torch, tolerance)


def check_format(name: str):
    """
    Raises:
        ValueError: an unknown format.
    """
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; expected {' or '.join(map(repr, FORMATS))}.")


def check_opset(opset: int):
    """
    Raises:
        ValueError: an opset that the installed onnx does not know, or one before 18.
    """
    with extra("export", "Export to ONNX"):
        import onnx

    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or isinstance(opset, bool) or not DEFAULT_OPSET <= opset <= newest:
        raise ValueError(f"opset is {opset!r}; expected an integer from {DEFAULT_OPSET} to {newest}.")


def check_packages(name: str):
    """
    Raises:
        ImportError: what a format needs is not installed.
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
    load: Callable[[Path], Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]],
    tolerance: float,
) -> dict[str, Any]:
    check_new_folder(output)
    check_image_processor(image_processor, model.config.image_size)
    detector = ExportedDetector(model)
    with new_folder(output) as folder:
        details = write(detector, folder)
        deviation = compare_with_model(load(folder), model, image_processor)
        check_deviation(deviation, name, tolerance)
        model.config.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        report = describe_export(model, name, details, deviation, tolerance)
        (folder / "export.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(export_card(report, image_processor), encoding="utf-8")
        for path in folder.iterdir():  # some writers make files that only their owner can read
            path.chmod(0o666 & ~umask())
    return {**report, "files": {path.name: path.stat().st_size for path in sorted(Path(output).iterdir())}}


def _example(detector: ExportedDetector) -> dict[str, Any]:
    """What the exporters are told of the input."""
    size = detector.model.config.image_size
    batch = torch.export.Dim("batch_size", min=1)
    return {"args": (torch.zeros(2, 3, size, size),), "dynamic_shapes": {"pixel_values": {0: batch}}}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own workings."""
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
