"""Arguments of training/train.py: a JSON or YAML file, overridden by the command line."""

import difflib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from vip2clip_hf.trainer import ViP2ClipTrainingArguments


@dataclass
class ModelArguments:
    clip: str | None = field(
        default=None,
        metadata={
            "help": "The frozen backbone: folder or Hub id of a CLIP checkpoint, such as "
            "openai/clip-vit-large-patch14-336. 'random-tiny' builds a small one with random weights, to try the "
            "script out; its figures mean nothing."
        },
    )
    variant: str = field(default="paper", metadata={"help": "'paper' or 'release', see docs/paper-and-release.md."})
    image_size: int = field(default=518, metadata={"help": "Side of the input in pixels."})
    feature_layers: list[int] = field(
        default_factory=lambda: [6, 12, 18, 24], metadata={"help": "1-based vision blocks to align."}
    )
    top_k: int = field(default=50, metadata={"help": "Patches per layer that stand for the image."})


@dataclass
class DataArguments:
    train_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Data to train on, one or several [NAME=]ROOT: a benchmark by its name (mvtec=path/to/MVTec), or "
            "a folder, table or Hub id with labels, see docs/data.md."
        },
    )
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Data to evaluate on, likewise; during training with --eval_strategy."}
    )
    train_split: str = field(default="test", metadata={"help": "Split to train on; the paper's is test."})
    eval_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    adapters_only: bool = field(
        default=False, metadata={"help": "Leave the backbone out of the checkpoint; it is fetched when it is loaded."}
    )


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, ViP2ClipTrainingArguments]:
    """
    Read `[CONFIG] [--name value ...]`; what stands on the command line wins.

    Raises:
        OSError: the file is missing.
        ValueError: the file holds no arguments by name, or has a key that does not exist.
    """
    types = (ModelArguments, DataArguments, ViP2ClipTrainingArguments)
    parser = HfArgumentParser(types)
    known = [f.name for t in types for f in fields(t) if f.init]
    if argv and not argv[0].startswith("-"):
        path, argv = Path(argv[0]), argv[1:]
        config = _read(path)
        given = []
        for name, value in config.items():
            if name not in known:
                raise ValueError(f"{path} has the unknown key {name!r}{_hint(str(name), known)}")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                given += [f"--{name}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
        argv = given + argv  # the parser checks both alike, and takes the last
    *parsed, left = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    if left:
        name = left[0].lstrip("-")
        raise ValueError(f"Unknown argument {left[0]!r}{_hint(name, known)}")
    return tuple(parsed)


def _hint(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; see --help for those there are."


def _read(path: Path) -> dict:
    if not path.is_file():
        raise OSError(f"Configuration file {str(path)!r} not found; expected a JSON or YAML file.")
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    text = path.read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no {'YAML' if is_yaml else 'JSON'} file: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; expected an object with arguments by name.")
    return config
