"""`vip2clip convert`."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, one_of, parse_settings, print_json, shows_progress
from .streams import say


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of the authors' code (.pth).")],
    clip: Annotated[
        str,
        typer.Option(help="CLIP backbone: folder or Hub id. The authors used openai/clip-vit-large-patch14-336."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    method: Annotated[
        str,
        typer.Option(
            help="Method whose code has written the checkpoint.",
            callback=one_of("--method", "vip2clip", "april-gan", "anomalyclip", "adaclip"),
        ),
    ] = "vip2clip",
    adapters_only: Annotated[
        bool,
        typer.Option("--adapters-only", help="Leave out the backbone. It is downloaded when the model is loaded."),
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set a field of the configuration, such as top_k=100. Repeatable."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the ViP²-CLIP checkpoint in OUTPUT. Other files are kept.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of the authors' code.

    Writes a checkpoint folder for from_pretrained. The converted model reproduces the results of the authors' code.

    \b
    Examples:
      vip2clip convert epoch_10.pth --clip openai/clip-vit-large-patch14-336 --output vip2clip
      vip2clip convert visa_pretrained.pth --method april-gan --clip CLIP --output april-gan
    """
    from ..checkpoints.saving import check_target, write_checkpoint
    from ..models.vip2clip import ViP2ClipImageProcessor, convert_release_checkpoint
    from ..utils.outputs import check_output

    check_output("--output", output, [clip])
    check_target(output)
    _check_replaced(output, overwrite)
    shows_progress()
    if method != "vip2clip":
        from ..baselines.methods import find_method
        from ..baselines.saving import write_baseline

        baseline = find_method(method).convert(checkpoint, clip, **parse_settings(setting or []))
        processor = ViP2ClipImageProcessor(size=baseline.config.side)
        write_baseline(baseline, processor, output, adapters_only=adapters_only)
        _report(output, adapters_only, as_json)
        return
    model = convert_release_checkpoint(checkpoint, clip, **parse_settings(setting or []))
    write_checkpoint(model, ViP2ClipImageProcessor(size=model.config.image_size), output, adapters_only=adapters_only)
    _report(output, adapters_only, as_json)


def _report(output: Path, adapters_only: bool, as_json: bool) -> None:
    if as_json:
        print_json({"checkpoint": str(output), "adapters_only": adapters_only})
    else:
        say(f"Wrote {output}")


def _check_replaced(output: Path, overwrite: bool) -> None:
    """Keep a folder that contains something else than a checkpoint of this model, and a checkpoint unless it may be
    replaced."""
    from ..baselines.methods import METHODS
    from ..models.vip2clip import ViP2ClipConfig

    if not output.is_dir() or not any(output.iterdir()):
        return
    model_type = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        model_type = json.loads((output / "config.json").read_text(encoding="utf-8")).get("model_type")
    others = {method.model_class.config_class.model_type for method in METHODS.values() if method.converter}
    if model_type not in {ViP2ClipConfig.model_type, *others}:
        raise OSError(
            f"{str(output)!r} is not empty and does not contain a checkpoint of this model; expected a new folder."
        )
    if not overwrite:
        raise OSError(f"{str(output)!r} contains a checkpoint; choose a new folder, or replace it with --overwrite.")


__all__ = ["convert"]
