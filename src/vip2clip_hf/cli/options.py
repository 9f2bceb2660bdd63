"""Options that several commands share, and what commands do alike."""

import json
import os
import sys
from typing import Annotated, Any

import typer


Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or Hub id.", show_default="the small bundled checkpoint")
]
Backbone = Annotated[
    str | None,
    typer.Option(help="CLIP backbone of an adapters-only checkpoint, if it is not the one that the checkpoint names."),
]
Device = Annotated[
    str | None, typer.Option(help="Device to run on: cpu, cuda, mps, ...", show_default="the first accelerator")
]
Dtype = Annotated[str, typer.Option(help="Precision: float32, bfloat16 or float16.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def usage_error(message: str) -> typer.BadParameter:
    """An error of the command line itself; ends with exit code 2."""
    return typer.BadParameter(message)


def parse_pair(text: str, option: str, form: str, example: str) -> tuple[str, str]:
    """
    `"NAME=VALUE"` as name and value.

    Args:
        text (`str`): what was given.
        option, form, example (`str`): for the error message.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise usage_error(f"{option} {text!r}: expected {form}, such as {example}.")
    return name.strip(), value


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`["image_size=518", "feature_layers=[6, 12]"]` as a dict. Values are JSON; anything else is text."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, value = parse_pair(setting, "--set", "NAME=VALUE", "image_size=518")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def checkpoint_or_bundled(model: str | None) -> str:
    """The checkpoint given, else the bundled one, with a note on stderr."""
    if model is not None:
        return model
    from ..checkpoints.bundled import bundled_checkpoint

    if os.environ.get("RANK", "0") == "0":  # one of several processes is enough
        typer.echo(
            "Using the small bundled checkpoint, intended for trying things out. For real work, pass a checkpoint on "
            "CLIP ViT-L/14 with --model: convert the authors' or train your own, see docs/quickstart.md.",
            err=True,
        )
    return str(bundled_checkpoint())


def shows_progress() -> bool:
    """Whether somebody watches. If not, loading shows no progress bars either: in a log they are noise."""
    if sys.stderr.isatty():
        return True
    from transformers.utils import logging

    logging.disable_progress_bar()
    return False


def print_json(content: Any):
    """A result on stdout, as JSON."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


__all__ = [
    "Backbone",
    "Device",
    "Dtype",
    "Json",
    "Model",
    "checkpoint_or_bundled",
    "parse_pair",
    "parse_settings",
    "print_json",
    "shows_progress",
    "usage_error",
]
