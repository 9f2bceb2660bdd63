"""Entry point of the `vip2clip` command: command groups and error handling."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._version import __version__
from .app_page import app_page
from .calibrate import calibrate
from .convert import convert
from .data import data
from .demo import demo
from .evaluate import evaluate
from .export import export
from .predict import predict
from .train import TRAIN_SETTINGS, train


# Commands by the heading of their group in the help.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Use": {"predict": predict, "calibrate": calibrate, "app": app_page, "demo": demo},
    "Train": {"data": data, "train": train},
    "Evaluate": {"evaluate": evaluate},
    "Ship": {"convert": convert, "export": export},
}
EXIT_CODES = "Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but some images or checks failed."


class CommandGroups(TyperGroup):
    """List the commands in groups in the help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each group of `COMMANDS` as a section of the help."""
        width = max(len(name) for commands in COMMANDS.values() for name in commands)
        for heading, names in COMMANDS.items():
            commands = [(name, self.commands[name]) for name in names]
            with formatter.section(heading):
                limit = formatter.width - 6 - width
                formatter.write_dl([(name.ljust(width), one.get_short_help_str(limit)) for name, one in commands])


app = typer.Typer(
    cls=CommandGroups,
    help="Zero-shot visual anomaly detection with ViP²-CLIP.",
    epilog=f"Run vip2clip COMMAND --help for options and examples. {EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # Accept --save_maps for --save-maps: the options of transformers use underscores.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
for _commands in COMMANDS.values():
    for _name, _function in _commands.items():
        app.command(_name, **(TRAIN_SETTINGS if _function is train else {}))(_function)


def _show_version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command. Print expected errors to stderr without a traceback and exit with code 1."""
    try:
        app(prog_name="vip2clip")
    except Exception as error:
        if not _is_expected(error):
            raise
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _is_expected(error: Exception) -> bool:
    """Check whether the message of an error is enough for the user, without a traceback."""
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

    expected = (ImportError, OSError, RuntimeError, TypeError, ValueError, HfHubHTTPError, StrictDataclassError)
    return isinstance(error, expected)


__all__ = ["COMMANDS", "app", "main"]
