"""`vip2clip export`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Backbone, Json, Model, checkpoint_or_bundled, print_json, shows_progress, usage_error


def export(
    output: Annotated[Path, typer.Option(help="Folder to write. It must be empty or not exist.")],
    model: Model = None,
    format_name: Annotated[
        str, typer.Option("--format", help="onnx (model.onnx), or torch (model.pt2, a torch.export program).")
    ] = "onnx",
    opset: Annotated[int | None, typer.Option(help="ONNX operator set version.", show_default="18")] = None,
    backbone: Backbone = None,
    as_json: Json = False,
):
    """Export a checkpoint to ONNX or torch.export.

    Writes one graph from pixel values to scores and maps, which accepts batches of any size. Its outputs are compared
    with PyTorch; if any differs by more than 1e-4, nothing is written.

    \b
    Examples:
      vip2clip export --model checkpoint --output exported
      vip2clip export --model checkpoint --output exported --format torch
    """
    import torch

    from ..export.exporting import DEFAULT_OPSET, check_format, check_opset, check_packages, export_onnx, export_torch
    from ..models.vip2clip import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
    from ..utils.files import check_new_folder

    # Before the checkpoint is loaded, which can take minutes.
    check_format(format_name)
    check_packages(format_name)
    if format_name == "onnx":
        opset = DEFAULT_OPSET if opset is None else opset
        check_opset(opset)
    elif opset is not None:
        raise usage_error("--opset applies to --format onnx only; leave it out.")
    check_new_folder(output)
    model = checkpoint_or_bundled(model)
    shows_progress()
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(model, dtype=torch.float32, backbone=backbone)
    image_processor = ViP2ClipImageProcessor.from_pretrained(model)
    if format_name == "onnx":
        report = export_onnx(loaded, image_processor, output, opset=opset)
    else:
        report = export_torch(loaded, image_processor, output)
    if as_json:
        print_json(report)
        return
    typer.echo(f"Wrote {output}")
    for name, size in report["files"].items():
        typer.echo(f"  {name}: {f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size} bytes'}")
    found = ", ".join(f"{name} {value:.1e}" for name, value in report["largest_deviation"].items())
    typer.echo(f"Largest deviation from PyTorch: {found} (allowed: {report['tolerance']:g})")


__all__ = ["export"]
