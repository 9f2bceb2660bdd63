"""
Help of `vip2clip train`, without importing transformers and torch, which takes seconds.

`help.json` contains the arguments as the parser of transformers defines them. To write it again after a change of the
arguments, run `python -m vip2clip_hf.training.help`.
"""

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any


USAGE = "vip2clip train [CONFIG or PHOTOS...] [--NAME VALUE ...]"
DESCRIPTION = """\
Train adapters on datasets with defects, evaluate them on other datasets, and write a checkpoint.

CONFIG is a JSON or YAML file that maps argument names to values. --recipe NAME is one of the files of the package.
CONFIG overrides the recipe, and arguments on the command line override both. PHOTOS are datasets, like --train_data;
--output FOLDER is a second name of --output_dir.
To train on several GPUs, run: accelerate launch training/train.py [CONFIG] [--NAME VALUE ...]
To resume an interrupted run, add --resume_from_checkpoint true to the same command."""
EPILOG = """\
examples:
  vip2clip train --recipe tiny --clip CLIP --train_data A --eval_data B
  vip2clip train --recipe mvtec --dry-run
  vip2clip train --clip CLIP --train_data mvtec=MVTec --eval_data visa=VisA --cache_features cache

All arguments of transformers.TrainingArguments are accepted. Use --help-all to list them."""
FIELDS = ("nargs", "metavar", "choices", "default", "help")


def stored_help() -> str:
    """
    Return the help of the command for the width of the terminal.

    Returns:
        `str`: the text, equal to that of the parser of `vip2clip train`.
    """
    parser = argparse.ArgumentParser(
        prog="vip2clip train",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    content = json.loads(resources.files(__package__).joinpath("help.json").read_text(encoding="utf-8"))
    for argument in content:
        parser._add_action(argparse.Action(argument["names"], argument["dest"], **_fields(argument)))
    return parser.format_help()


def _fields(argument: dict[str, Any]) -> dict[str, Any]:
    return {name: argument[name] for name in FIELDS if name in argument}


def described(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """
    Describe the arguments that a parser shows in its help.

    Args:
        parser (`argparse.ArgumentParser`): the parser.

    Returns:
        `list[dict[str, Any]]`: name of each field that is set, by argument, for JSON.
    """
    found = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        argument: dict[str, Any] = {"names": list(action.option_strings), "dest": action.dest}
        for name in FIELDS:
            value = getattr(action, name)
            if value is not None and value != argparse.SUPPRESS:
                argument[name] = list(value) if name == "choices" else value
        # The help shows the value of a default that is no text, number or list as text.
        argument = json.loads(json.dumps(argument, default=str))
        found.append(argument)
    return found


if __name__ == "__main__":
    from .parsing import make_parser

    text = json.dumps(described(make_parser()), indent=1, ensure_ascii=False)
    Path(__file__).with_name("help.json").write_text(text + "\n", encoding="utf-8")


__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "described", "stored_help"]
