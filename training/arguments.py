"""Arguments of training/train.py: a JSON file, overridden by the command line."""

import difflib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from transformers import HfArgumentParser, TrainingArguments


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
    variant: str = field(default="paper", metadata={"help": "'paper' or 'release', see docs/model.md."})
    image_size: int = field(default=518, metadata={"help": "Side of the input in pixels."})
    feature_layers: list[int] = field(
        default_factory=lambda: [6, 12, 18, 24], metadata={"help": "1-based vision blocks to align."}
    )
    top_k: int = field(default=50, metadata={"help": "Patches per layer that stand for the image."})


@dataclass
class DataArguments:
    train_root: str | None = field(
        default=None,
        metadata={"help": "Data to train on: a folder, table or Hub id with labels, see docs/data.md."},
    )
    train_benchmark: str | None = field(
        default=None,
        metadata={"help": "Name of the benchmark in --train_root, such as mvtec; see docs/benchmarks.md."},
    )
    eval_root: str | None = field(default=None, metadata={"help": "Data to evaluate on, likewise."})
    eval_benchmark: str | None = field(default=None, metadata={"help": "Name of the benchmark in --eval_root."})
    adapters_only: bool = field(
        default=False, metadata={"help": "Leave the backbone out of the checkpoint; it is fetched when it is loaded."}
    )


@dataclass
class AdapterTrainingArguments(TrainingArguments):
    """Defaults of the authors' recipe: Adam, constant rates 1e-3 and 1e-5, batches of 8, 10 epochs, no clipping."""

    output_dir: str = field(default="outputs", metadata={"help": "Where the trained model and its figures go."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Rate of prompts and image-conditioned adapter."})
    perception_learning_rate: float = field(default=1e-5, metadata={"help": "Rate of the fine-grained perception."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Images per step and device."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Images per step and device."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the training data."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "How the learning rates change."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 for none."})
    seed: int = field(default=111, metadata={"help": "Of the adapters' initial weights and the order of the data."})
    save_strategy: str = field(default="no", metadata={"help": "When to save checkpoints."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss."})
    report_to: str = field(default="none", metadata={"help": "Experiment trackers."})
    # Pinning without an accelerator does nothing but warn.
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin memory for faster copies to the GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the columns it needs."})


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, AdapterTrainingArguments]:
    """
    Read `[CONFIG.json] [--name value ...]`; what stands on the command line wins.

    Raises:
        OSError: the file is missing.
        ValueError: the file is no JSON object, or has a key that does not exist.
    """
    types = (ModelArguments, DataArguments, AdapterTrainingArguments)
    parser = HfArgumentParser(types)
    if argv and not argv[0].startswith("-"):
        path, argv = Path(argv[0]), argv[1:]
        if not path.is_file():
            raise OSError(f"Configuration file {str(path)!r} not found; expected a JSON file.")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON file: {error}.") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} holds a {type(config).__name__}; expected an object with arguments by name.")
        known = [f.name for t in types for f in fields(t) if f.init]
        given = []
        for name, value in config.items():
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else "; see --help for those there are."
                raise ValueError(f"{path} has the unknown key {name!r}{hint}")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                given += [f"--{name}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
        argv = given + argv  # the parser checks both alike, and takes the last
    return parser.parse_args_into_dataclasses(args=argv)
