"""Parse the arguments of `vip2clip train`: a JSON or YAML file, overridden by the command line."""

import argparse
import difflib
import enum
import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from .help import DESCRIPTION, EPILOG, USAGE
from .named_recipes import RECIPES, recipe_path


_TYPES = (ModelArguments, DataArguments, ViP2ClipTrainingArguments)
_NAMES = [field.name for dataclass in _TYPES for field in fields(dataclass) if field.init]
# Arguments of the command itself.
_FLAGS = ("recipe", "list_recipes", "print_config", "dry_run")
# Help of inherited arguments that work differently here.
_HELP = {
    "push_to_hub": "Whether to publish the final checkpoint on the Hub. Requires hub_model_id.",
    "hub_model_id": "The repository on the Hub, as org/name.",
    "resume_from_checkpoint": "Use 'true' to resume from the last complete checkpoint in output_dir, or pass the path "
    "of a checkpoint.",
    "gradient_accumulation_steps": "Number of batches per update step. Batch size of a step = "
    "per_device_train_batch_size * number of processes * gradient_accumulation_steps.",
}


def make_parser(show_all: bool = False) -> HfArgumentParser:
    """
    Create the argument parser.

    Args:
        show_all (`bool`, defaults to `False`): whether the help lists all inherited arguments.

    Returns:
        `HfArgumentParser`: the parser.
    """
    parser = HfArgumentParser(
        _TYPES,  # type: ignore[arg-type]  # declared as a NewType that no dataclass matches
        prog="vip2clip train",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=None if show_all else EPILOG,
        allow_abbrev=False,  # an abbreviated --method or --recipe would not load its recipe
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--help-all", action="store_true", help="show all arguments and exit")
    parser.add_argument("--recipe", metavar="NAME", help="start from a recipe of the package, see --list-recipes")
    parser.add_argument("--list-recipes", action="store_true", help="list the recipes of the package and exit")
    parser.add_argument(
        "--print-config", action="store_true", help="print the arguments that are set as a JSON file, and exit"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be trained, with times from a few measured steps, and exit",
    )
    shown = {field.name for dataclass in (ModelArguments, DataArguments) for field in fields(dataclass)}
    shown |= {"help", "help_all", "bf16", "eval_strategy", *_FLAGS, *_HELP}
    shown |= set(inspect.get_annotations(ViP2ClipTrainingArguments))
    shown -= {"remove_unused_columns", "logging_nan_inf_filter", "dataloader_pin_memory"}  # rarely changed
    for action in parser._actions:
        action.help = _HELP.get(action.dest, action.help)
        if not show_all and action.dest not in shown:
            action.help = argparse.SUPPRESS
    return parser


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, ViP2ClipTrainingArguments]:
    """
    Parse `[CONFIG] [--name value ...]`. The command line overrides the file, which overrides the recipe.

    Args:
        argv (`Sequence[str]`): command line without the name of the command.

    Returns:
        `tuple[ModelArguments, DataArguments, ViP2ClipTrainingArguments]`: the arguments.

    Raises:
        OSError: if the configuration file does not exist.
        ValueError: if the file does not contain an object, if there is no such recipe, or if the name or the value of
            an argument is not valid.
        SystemExit: if a value has the wrong type. The parser prints the usage.
    """
    parsed: Any = make_parser().parse_args_into_dataclasses(args=_expand(argv), return_remaining_strings=True)
    model_arguments, data_arguments, training_arguments, _, unknown = parsed
    if unknown:
        raise ValueError(f"Unknown argument {unknown[0]!r}{_hint(unknown[0].lstrip('-'))}")
    return model_arguments, data_arguments, training_arguments


def given_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """
    Return the arguments that are set by a recipe, a file or the command line, as the content of a CONFIG file.

    Args:
        argv (`Sequence[str]`): command line without the name of the command.

    Returns:
        `dict[str, Any]`: values by name, JSON-serializable.

    Raises:
        OSError, ValueError, SystemExit: see [`parse_arguments`].
    """
    parse_arguments(argv)  # to check the values
    parser = make_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    found = vars(parser.parse_args(_expand(argv)))
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in found.items()
        if name not in (*_FLAGS, "help_all")
    }


def _expand(argv: Sequence[str]) -> list[str]:
    """Replace the recipe and the configuration file by the arguments that they contain."""
    argv = list(argv)
    files = []
    if argv and not argv[0].startswith("-"):
        files.append(Path(argv.pop(0)))
    only_recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_recipe.add_argument("--recipe")
    only_recipe.add_argument("--method")
    found, argv = only_recipe.parse_known_args(argv)
    if found.recipe is not None:
        files.insert(0, recipe_path(found.recipe))
    method = found.method or next((_read(path)["method"] for path in reversed(files) if "method" in _read(path)), None)
    recipe = None if found.recipe is None else _read(files[0]).get("method")
    if recipe is not None and method != recipe:
        raise ValueError(f"--recipe is {found.recipe!r}, but the method is {method!r}; expected one of them.")
    if method in RECIPES:
        files.insert(0, recipe_path(method))  # the published recipe of another method
    options: list[str] = []
    for path in files:
        for name, value in _read(path).items():
            if name not in _NAMES:
                raise ValueError(f"{path} contains the unknown argument {name!r}{_hint(str(name))}")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                options += [f"--{name}", *(item if isinstance(item, str) else json.dumps(item) for item in values)]
    options += [] if found.method is None else ["--method", found.method]
    return options + argv  # if an argument occurs twice, the parser uses the last value


def _hint(name: str) -> str:
    nearest = difflib.get_close_matches(name, _NAMES, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; use --help-all to list all arguments."


def _read(path: Path) -> dict[str, Any]:
    """Read a configuration file."""
    if not path.is_file():
        raise OSError(f"Configuration file {str(path)!r} not found; expected a JSON or YAML file.")
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    text = path.read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a valid {'YAML' if is_yaml else 'JSON'} file: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{path} contains a {type(config).__name__}; expected an object that maps argument names to values."
        )
    return config


__all__ = ["given_arguments", "make_parser", "parse_arguments"]
