"""`vip2clip convert`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, parse_settings, print_json, shows_progress


def convert(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of the authors' code (.pth).")],
    clip: Annotated[
        str,
        typer.Option(help="CLIP backbone: folder or Hub id. The authors used openai/clip-vit-large-patch14-336."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
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
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of the authors' code.

    Writes a checkpoint folder for from_pretrained. The converted model reproduces the results of the authors' code.

    \b
    Example:
      vip2clip convert --checkpoint epoch_10.pth --clip openai/clip-vit-large-patch14-336 --output vip2clip
    """
    from ..checkpoints.saving import check_target, write_checkpoint
    from ..models.vip2clip import ViP2ClipImageProcessor, convert_release_checkpoint

    check_target(output)
    shows_progress()
    model = convert_release_checkpoint(checkpoint, clip, **parse_settings(setting or []))
    write_checkpoint(model, ViP2ClipImageProcessor(size=model.config.image_size), output, adapters_only=adapters_only)
    if as_json:
        print_json({"checkpoint": str(output), "adapters_only": adapters_only})
    else:
        typer.echo(f"Wrote {output}")


__all__ = ["convert"]
