"""Build the bundled checkpoint: assemble or train a small CLIP, then train ViP²-CLIP adapters on it.

python -m training.build_tiny tower --output tower
python -m training.build_tiny compare --clip tower
python -m training.build_tiny distil --teacher CLIP --output tower
python -m training.build_tiny evaluate --tower tower --teacher CLIP --data A B C --output study
python -m training.build_tiny adapters --tower tower --data A B C --output study --checkpoint vip2clip-tiny

`tower` rewrites a vision transformer as a CLIP, in float16: that of --vit, or with --clip one that is rewritten
already. `compare` rebuilds a tower from the original and compares the weights.

`distil` distils the patch features of a teacher, any CLIP, on synthetic images and, with --data, on crops of real
images. If interrupted, run the same command again to resume. `evaluate` selects the settings by leaving out one real
dataset at a time. `adapters` trains on synthetic images and, with --data, on real images. docs/tiny.md describes the
settings and the results.
"""

import argparse
from collections.abc import Sequence

from .adapters import build_adapters
from .assembly import DEFAULT_VIT, assemble_tower, compare_tower
from .common import STUDENT_BLOCKS
from .study import EXAMPLES, evaluate_study
from .tower import build_tower


def make_parser() -> argparse.ArgumentParser:
    """Create the argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m training.build_tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    assemble = commands.add_parser("tower", help="assemble the vision tower from a vision transformer")
    source = assemble.add_mutually_exclusive_group()
    source.add_argument("--vit", default=DEFAULT_VIT, help=f"folder or Hub id; default: {DEFAULT_VIT}")
    source.add_argument("--clip", help="folder of a CLIP with a vision transformer that is rewritten already")
    assemble.add_argument("--output", required=True, help="new folder for the tower")
    assemble.add_argument("--seed", type=int, default=0, help="random seed of the text tower, with --vit")
    assemble.set_defaults(run=assemble_tower)
    compare = commands.add_parser("compare", help="compare a tower with the vision transformer it comes from")
    compare.add_argument("--clip", required=True, help="folder of the tower")
    compare.add_argument("--vit", default=DEFAULT_VIT, help=f"folder or Hub id; default: {DEFAULT_VIT}")
    compare.set_defaults(run=compare_tower)
    tower = commands.add_parser("distil", help="distil the vision tower")
    tower.add_argument("--teacher", required=True, help="folder or Hub id of a CLIP checkpoint")
    tower.add_argument("--output", required=True, help="folder for the tower and the state of the run")
    tower.add_argument("--data", nargs="*", help="folders of real images to crop, in addition to synthetic images")
    tower.add_argument("--steps", type=int, default=3000, help="number of training steps")
    tower.add_argument("--batch_size", type=int, default=24, help="number of crops per step")
    tower.add_argument("--crops", type=int, default=6000, help="number of crops to train on")
    tower.add_argument("--learning_rate", type=float, default=1e-3, help="peak learning rate")
    tower.add_argument("--bf16", action="store_true", help="train in bfloat16, faster on CPUs that support it")
    tower.add_argument("--seed", type=int, default=0, help="random seed of weights, crops and batches")
    tower.set_defaults(run=build_tower)
    for name, run, text in (
        ("evaluate", evaluate_study, "select the settings and report results, leaving out one dataset at a time"),
        ("adapters", build_adapters, "train the adapters of the bundled checkpoint"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--tower", required=True, help="output folder of the tower or distil command")
        command.add_argument("--teacher", help="folder or Hub id of a CLIP checkpoint to compare with")
        command.add_argument("--data", nargs="*", help="folders of real datasets with masks")
        command.add_argument("--output", required=True, help="folder for the embeddings and results of the study")
        command.add_argument(
            "--hold_out", nargs="*", default=list(EXAMPLES), help="leave out images with an id that ends like this"
        )
        if name == "adapters":
            command.add_argument("--checkpoint", required=True, help="folder for the checkpoint")
            command.add_argument("--variant", default="release", help="variant of the model: paper or release")
            command.add_argument("--image_size", type=int, default=320, help="side of the input images in pixels")
            command.add_argument(
                "--rates", type=float, nargs=2, default=[1e-3, 1e-3],
                help="learning rates of prompts and image-conditioned adapter, and of fine-grained perception",
            )  # fmt: skip
            command.add_argument("--layers", type=int, nargs="+", default=STUDENT_BLOCKS, help="feature layers")
            command.add_argument("--epochs", type=int, default=2, help="number of training epochs")
            command.add_argument("--seed", type=int, default=111, help="random seed of weights and batches")
            command.add_argument("--crops", type=int, default=6000, help="--crops of the tower, for the model card")
        command.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    options = make_parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
