"""Shared options and helpers of the commands."""

import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer


def one_of(option: str, *allowed: str) -> Callable[[str], str]:
    """
    Create a callback that checks the value of an option.

    Args:
        option (`str`): name of the option, for the message.
        allowed (`str`): allowed values.

    Returns:
        `Callable`: the callback. It raises `typer.BadParameter`, which ends the command with exit code 2.
    """

    def check(value: str) -> str:
        if value not in allowed:
            raise usage_error(f"{option} is {value!r}; expected {', '.join(allowed)}.")
        return value

    return check


def usage_error(message: str) -> typer.BadParameter:
    """
    Create an error for wrong command line arguments. Raising it ends the command with exit code 2.

    Args:
        message (`str`): the message.

    Returns:
        `typer.BadParameter`: the error.
    """
    return typer.BadParameter(message)


Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or Hub id.", show_default="small bundled checkpoint")
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="CLIP backbone of an adapters-only checkpoint: folder or Hub id.", show_default="set by the checkpoint"
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Device to run on: cpu, cuda, mps, ...", show_default="first accelerator")
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision: float32, bfloat16 or float16.", callback=one_of("--dtype", "float32", "bfloat16", "float16")
    ),
]
BitDepth = Annotated[
    int | None,
    typer.Option(
        min=8, max=16, help="Bits per value of photos that store more than 8, such as 12.",
        show_default="detected; unclear photos are errors",
    ),
]  # fmt: skip
Page = Annotated[
    int | None,
    typer.Option(min=1, help="Page or frame of photos with several.", show_default="several are an error"),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images and masks that cannot be read.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def parse_pair(text: str, option: str, form: str, example: str) -> tuple[str, str]:
    """
    Split an argument of the form `NAME=VALUE`.

    Args:
        text (`str`): the argument.
        option, form, example (`str`): option name, expected form and an example, for the error message.

    Returns:
        `tuple[str, str]`: name and value.

    Raises:
        typer.BadParameter: if there is no name or no "=".
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise usage_error(f"{option} is {text!r}; expected {form}, such as {example}.")
    return name.strip(), value


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """
    Parse settings such as `["image_size=518", "feature_layers=[6, 12]"]`.

    Args:
        settings (`list[str]`): arguments of the form `NAME=VALUE`. A value is parsed as JSON, or is kept as text.

    Returns:
        `dict[str, Any]`: value by name.

    Raises:
        typer.BadParameter: if a setting has no name or no "=".
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, value = parse_pair(setting, "--set", "NAME=VALUE", "image_size=518")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def checkpoint_or_bundled(model: str | None) -> str:
    """
    Use the bundled checkpoint if no checkpoint is set, and print a note to stderr.

    Args:
        model (`str`, *optional*): checkpoint folder or Hub id.

    Returns:
        `str`: `model`, or the folder of the bundled checkpoint.
    """
    if model is not None:
        return model
    from ..checkpoints.bundled import bundled_checkpoint

    if os.environ.get("RANK", "0") == "0":  # print once
        typer.echo(
            "Using the small bundled checkpoint, intended for trying things out. For real work, pass a ViT-L/14 "
            "checkpoint with --model: convert the authors' checkpoint or train your own, see docs/quickstart.md.",
            err=True,
        )
    return str(bundled_checkpoint())


def shows_progress() -> bool:
    """
    Check whether to show progress bars. If not, also disable those of transformers, which would clutter a log.

    Returns:
        `bool`: True if stderr is a terminal.
    """
    if sys.stderr.isatty():
        return True
    from transformers.utils import logging

    logging.disable_progress_bar()
    return False


def print_json(content: Any) -> None:
    """
    Print a result to stdout as JSON.

    Args:
        content: JSON-serializable content without NaN and infinite numbers, see [`without_nan`].

    Raises:
        ValueError: if a number is not finite, which JSON cannot represent.
    """
    from ..utils.serialization import to_json

    typer.echo(to_json(content), nl=False)


__all__ = [
    "Backbone",
    "BitDepth",
    "Device",
    "Dtype",
    "Json",
    "Model",
    "Page",
    "SkipUnreadable",
    "checkpoint_or_bundled",
    "one_of",
    "parse_pair",
    "parse_settings",
    "print_json",
    "shows_progress",
    "usage_error",
]
