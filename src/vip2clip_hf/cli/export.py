"""`vip2clip export`."""

from pathlib import Path
from typing import Annotated

import typer

from .model_argument import check_model
from .options import (
    Backbone,
    Json,
    Model,
    NoReferences,
    checkpoint_or_bundled,
    one_of,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say, say_error


def export(
    output: Annotated[Path, typer.Option(help="New or empty folder to write.")],
    model: Model = None,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx (model.onnx) or torch (model.pt2, a torch.export program).",
            callback=one_of("--format", "onnx", "torch"),
        ),
    ] = "onnx",
    opset: Annotated[int | None, typer.Option(help="ONNX operator set version.", show_default="18")] = None,
    backbone: Backbone = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Compute with int8: 8-bit integers in the vision tower, faster and smaller. Scores change a "
            "little. Needs --calibration-photos.",
            show_default="float32",
        ),
    ] = None,
    calibration_photos: Annotated[
        Path | None,
        typer.Option(help="With --quantize: folder of photos of your parts, to measure the range of the values on."),
    ] = None,
    no_references: NoReferences = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to ONNX or torch.export.

    Writes one graph from pixel values to scores and anomaly maps, for any batch size. Compares its outputs with the
    model in PyTorch; if they differ by more than 1e-4, nothing is written.

    \b
    Examples:
      vip2clip export --model checkpoint --output exported
      vip2clip export --model checkpoint --output exported --format torch
      vip2clip export --model checkpoint --output exported --quantize int8 --calibration-photos good
    """
    import torch

    from ..export.exporting import DEFAULT_OPSET, check_format, check_opset, check_packages, export_onnx, export_torch
    from ..export.quantization import check_quantization
    from ..models.vip2clip import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
    from ..utils.files import check_new_folder

    # Check before loading the checkpoint, which can take minutes.
    check_format(format_name)
    check_packages(format_name)
    opset_or_default = DEFAULT_OPSET if opset is None else opset
    if format_name == "onnx":
        check_opset(opset_or_default)
    elif opset is not None:
        raise usage_error("--opset applies to --format onnx only; omit it.")
    if quantize is not None and format_name != "onnx":
        raise usage_error("--quantize applies to --format onnx only; omit it.")
    if (quantize is None) != (calibration_photos is None):
        raise usage_error("--quantize and --calibration-photos are used together; pass both or none.")
    photos = None if calibration_photos is None else str(calibration_photos)
    check_quantization(quantize, photos)
    if calibration_photos is not None and not calibration_photos.is_dir():
        raise OSError(f"--calibration-photos {photos!r} is not a folder; expected a folder of photos of your parts.")
    check_new_folder(output)
    check_model("export", model, output=" --output FOLDER")
    model = checkpoint_or_bundled(model)
    shows_progress()
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(model, dtype=torch.float32, backbone=backbone)
    references = None if no_references else loaded.references
    image_processor = ViP2ClipImageProcessor.from_pretrained(model)
    if format_name == "onnx":
        report = export_onnx(
            loaded,
            image_processor,
            output,
            opset=opset_or_default,
            references=references,
            quantize=quantize,
            calibration_photos=photos,
        )
    else:
        report = export_torch(loaded, image_processor, output, references=references)
    if as_json:
        print_json(report)
        return
    say(f"Wrote {output}")
    for name, size in report["files"].items():
        say(f"  {name}: {f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size} bytes'}")
    if report["references"]:
        say(f"Contains {report['references']['num_photos']} references; omit them with --no-references.")
    if quantization := report.get("quantization"):
        mean = ", ".join(f"{name} {one['mean']:.2g}" for name, one in quantization["deviation"].items())
        say(f"int8: mean difference from float32 on {quantization['num_images']} photos: {mean}")
        if report["decision"]["calibration"] is not None:
            say_error(
                "The thresholds were calibrated in float32. With int8, p-values are None; check the thresholds on "
                "your photos."
            )
    found = ", ".join(f"{name} {value:.1e}" for name, value in report["largest_deviation"].items())
    say(f"Largest deviation from PyTorch: {found} (allowed: {report['tolerance']:g})")


__all__ = ["export"]
