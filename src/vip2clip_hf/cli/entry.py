"""Entry point of the `vip2clip` command: command groups and error handling."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._version import __version__
from . import streams
from .adapt import adapt
from .app_page import app_page
from .build_backbone import build_backbone
from .calibrate import calibrate
from .compare import compare
from .convert import convert
from .data import data
from .demo import demo
from .errors import TRACEBACK, explain
from .evaluate import evaluate
from .export import export
from .old_spellings import with_new_spellings
from .options import expand_user
from .predict import predict
from .push import push
from .report import report
from .reproduce import reproduce
from .serve import serve
from .train import TRAIN_SETTINGS, train
from .watch import watch


# Commands by the heading of their group in the help.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Use": {
        "predict": predict,
        "report": report,
        "watch": watch,
        "adapt": adapt,
        "calibrate": calibrate,
        "app": app_page,
        "demo": demo,
    },
    "Train": {"data": data, "build-backbone": build_backbone, "train": train},
    "Evaluate": {"evaluate": evaluate, "compare": compare, "reproduce": reproduce},
    "Ship": {"convert": convert, "export": export, "push": push, "serve": serve},
}
EXIT_CODES = (
    "Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but some images or checks failed, 130 interrupted, 141 "
    "the reader of the results has closed the pipe."
)
INTERRUPTED = 130


class CommandGroups(TyperGroup):
    """List the commands in groups in the help, and prepare arguments and errors of all commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Replace old spellings, and `~` also where the shell does not."""
        return super().parse_args(ctx, [expand_user(argument) for argument in with_new_spellings(args)])

    def invoke(self, ctx: Any) -> Any:
        """Keep the library from handling these errors, which it does without a message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise streams.Interrupted from error
        except BrokenPipeError as error:
            raise streams.PipeClosed from error
        except EOFError as error:
            raise OSError(f"A file ends too early ({error or 'no more data'}); it may be damaged.") from error

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
    # The grammar of all commands.
    epilog="Most commands are vip2clip COMMAND PHOTOS [--model CHECKPOINT] [--output FOLDER]. "
    f"Run vip2clip COMMAND --help for options and examples. {EXIT_CODES}",
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
        streams.say(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command. Every error is one line on stderr, without a traceback, and an exit code other than 0."""
    code: Any = 0
    try:
        streams.prepare()
        app(prog_name="vip2clip")
    except SystemExit as stop:
        code = stop.code or 0
    except (KeyboardInterrupt, streams.Interrupted):
        streams.say_error(f"Interrupted. {_how_to_resume(sys.argv[1:])}")
        code = INTERRUPTED
    except (BrokenPipeError, streams.PipeClosed):
        streams.discard()
        code = streams.CLOSED_PIPE
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        streams.say_error(f"Error: {explain(error)}")
        code = 1
    sys.exit(streams.finish(code) if isinstance(code, int) else code)


def _how_to_resume(arguments: list[str]) -> str:
    """What to do after an interruption of a command with these arguments."""
    command = next((name for name in arguments if not name.startswith("-")), "")
    to_folder = any(argument.partition("=")[0] == "--output" for argument in arguments)
    if command in ("evaluate", "reproduce", "watch") or (command == "predict" and to_folder):
        return "To resume, run the same command again."
    if command == "train":
        return "To resume from the last checkpoint, run the same command again with --resume_from_checkpoint true."
    if command == "predict":
        return "Run the command again to start over; with --output FOLDER, an interrupted prediction resumes."
    return "Run the command again to start over."


__all__ = ["COMMANDS", "app", "main"]
