"""Arguments of `vip2clip train`: a JSON or YAML file, overridden by the command line."""

import argparse
import difflib
import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments


_TYPES = (ModelArguments, DataArguments, ViP2ClipTrainingArguments)
_KNOWN = [field.name for one in _TYPES for field in fields(one) if field.init]
_USAGE = "vip2clip train [CONFIG] [--NAME VALUE ...]"
_DESCRIPTION = """\
Train adapters on datasets with defects, evaluate them on others, write a checkpoint.

CONFIG is a JSON or YAML file with arguments by name; arguments on the command line override it. The same command runs
on several processes: accelerate launch training/train.py [CONFIG] [--NAME VALUE ...]. With
--resume_from_checkpoint True an interrupted training resumes."""
_EPILOG = """\
examples:
  vip2clip train training/configs/tiny.json --clip CLIP --train_data A --eval_data B
  vip2clip train --clip CLIP --train_data mvtec=MVTec --eval_data visa=VisA --cache_features cache

All other arguments of transformers.TrainingArguments are accepted as well; --help-all lists them."""


def make_parser(show_all: bool = False) -> HfArgumentParser:
    """
    The parser.

    Args:
        show_all (`bool`, defaults to `False`): whether the help lists what is inherited from `TrainingArguments`.
    """
    parser = HfArgumentParser(
        _TYPES,
        prog="vip2clip train",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=None if show_all else _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--help-all", action="store_true", help="show all arguments and exit")
    own = {field.name for one in (ModelArguments, DataArguments) for field in fields(one)}
    own |= {"help", "help_all", "resume_from_checkpoint", "bf16", "gradient_accumulation_steps", "eval_strategy"}
    own |= {"push_to_hub", "hub_model_id", *inspect.get_annotations(ViP2ClipTrainingArguments)}
    own -= {"remove_unused_columns", "logging_nan_inf_filter", "dataloader_pin_memory"}  # rarely changed
    for action in parser._actions:
        if not show_all and action.dest not in own:
            action.help = argparse.SUPPRESS
    return parser


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, ViP2ClipTrainingArguments]:
    """
    Read `[CONFIG] [--name value ...]`. The command line overrides the file.

    Raises:
        OSError: the file does not exist.
        ValueError: the file is not an object of arguments, or a name is unknown.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        path, argv = Path(argv[0]), argv[1:]
        given = []
        for name, value in _read(path).items():
            if name not in _KNOWN:
                raise ValueError(f"{path} has the unknown key {name!r}{_hint(str(name))}")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                given += [f"--{name}", *(one if isinstance(one, str) else json.dumps(one) for one in values)]
        argv = given + argv  # the parser checks both, and takes the last
    *parsed, _, left = make_parser().parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    if left:
        raise ValueError(f"Unknown argument {left[0]!r}{_hint(left[0].lstrip('-'))}")
    return tuple(parsed)


def _hint(name: str) -> str:
    nearest = difflib.get_close_matches(name, _KNOWN, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; see --help-all for all arguments."


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise OSError(f"Configuration file {str(path)!r} not found; expected a JSON or YAML file.")
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    text = path.read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a valid {'YAML' if is_yaml else 'JSON'} file: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} contains a {type(config).__name__}; expected an object with arguments by name.")
    return config


__all__ = ["make_parser", "parse_arguments"]
