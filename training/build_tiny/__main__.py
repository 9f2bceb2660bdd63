"""Build the bundled checkpoint from nothing: a small CLIP, then ViP²-CLIP adapters on it.

python -m training.build_tiny tower --teacher CLIP --output tower
python -m training.build_tiny evaluate --tower tower --teacher CLIP --data A B C --output study
python -m training.build_tiny adapters --tower tower --data A B C --output study --checkpoint vip2clip-tiny

`tower` distils the patch features of a teacher, any CLIP, on synthetic images and, with --data, on crops of real
images. If interrupted, it resumes (--output keeps its state). `adapters` trains on synthetic anomalies and, with
--data, on real ones. docs/tiny.md has the choices and the results.
"""

import argparse
from collections.abc import Sequence

from .adapters import build_adapters
from .common import STUDENT_BLOCKS
from .study import EXAMPLES, evaluate_study
from .tower import build_tower


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.build_tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    tower = commands.add_parser("tower", help="distil the vision tower")
    tower.add_argument("--teacher", required=True, help="folder or Hub id of a CLIP")
    tower.add_argument("--output", required=True)
    tower.add_argument("--data", nargs="*", help="folders of photos to cut crops from, besides generated pictures")
    tower.add_argument("--steps", type=int, default=3000)
    tower.add_argument("--batch_size", type=int, default=24)
    tower.add_argument("--crops", type=int, default=6000)
    tower.add_argument("--learning_rate", type=float, default=1e-3)
    tower.add_argument("--bf16", action="store_true", help="faster on processors with bfloat16 instructions")
    tower.add_argument("--seed", type=int, default=0)
    tower.set_defaults(run=build_tower)
    for name, run, text in (
        ("evaluate", evaluate_study, "choose on some sets, report on another"),
        ("adapters", build_adapters, "train what is shipped"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--tower", required=True, help="what the command tower has written")
        command.add_argument("--teacher", help="to compare with")
        command.add_argument("--data", nargs="*", help="real data sets with masks")
        command.add_argument("--output", required=True, help="folder of the study: embeddings, figures")
        command.add_argument("--hold_out", nargs="*", default=list(EXAMPLES), help="ends of image ids to leave out")
        if name == "adapters":
            command.add_argument("--checkpoint", required=True, help="folder to write")
            command.add_argument("--variant", default="release")
            command.add_argument("--image_size", type=int, default=320)
            command.add_argument("--rates", type=float, nargs=2, default=[1e-3, 1e-3])
            command.add_argument("--layers", type=int, nargs="+", default=STUDENT_BLOCKS, help="blocks to align")
            command.add_argument("--epochs", type=int, default=2)
            command.add_argument("--seed", type=int, default=111)
            command.add_argument("--crops", type=int, default=6000, help="as given to tower, for the card")
        command.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None):
    options = make_parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
