"""The `vip2clip` command."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.errors import StrictDataclassError

from . import __version__


app = typer.Typer(
    help="Zero-shot visual anomaly detection with ViP²-CLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool):
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
):
    pass


def parse_settings(settings: list[str]) -> dict:
    """`["image_size=518", "feature_layers=[6, 12]"]` as a dict; values are JSON, or text where they are not."""
    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set {setting!r}: expected NAME=VALUE, such as image_size=518.")
        try:
            parsed[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name.strip()] = value
    return parsed


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Option(help="A .pth file of the authors' released code.")],
    clip: Annotated[
        str, typer.Option(help="Its backbone: folder or Hub id, openai/clip-vit-large-patch14-336 for the authors'.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    adapters_only: Annotated[
        bool, typer.Option("--adapters-only", help="Leave out the backbone; it is fetched when the model is loaded.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Field of the configuration, such as top_k=100. Repeatable."),
    ] = None,
):
    """Convert a checkpoint of the authors' code to a folder for from_pretrained.

    Example: vip2clip convert --checkpoint epoch_10.pth --clip openai/clip-vit-large-patch14-336 --output vip2clip
    """
    from .convert_vip2clip_to_hf import convert_release_checkpoint
    from .hub import check_target, save_checkpoint
    from .image_processing_vip2clip import ViP2ClipImageProcessor

    check_target(output)
    model = convert_release_checkpoint(checkpoint, clip, **parse_settings(setting or []))
    save_checkpoint(model, ViP2ClipImageProcessor(size=model.config.image_size), output, adapters_only=adapters_only)
    typer.echo(f"Wrote {output}")


def main():
    """Entry point: errors that say what to do are printed without a traceback, with exit code 1."""
    try:
        app()
    except (OSError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
