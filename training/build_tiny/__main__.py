"""Build the bundled checkpoint: assemble a small CLIP from a vision transformer, then train ViP²-CLIP adapters on it.

python -m training.build_tiny tower --output tower
python -m training.build_tiny compare --clip tower
python -m training.build_tiny study --tower tower --data A B C --output study
python -m training.build_tiny adapters --tower tower --data A B C --output study --checkpoint vip2clip-tiny
python -m training.build_tiny rivals --data A B C --output study --folder trained

`tower` rewrites a vision transformer as a CLIP, in float16: that of --vit, or with --clip one that is rewritten
already. `compare` rebuilds a tower from the original and compares the weights. `study` evaluates the recipe and
changes of it, leaving out one real dataset at a time. If interrupted, run the same command again to resume; run it
with --part 1/2 and --part 2/2 at the same time to use two processes. `adapters` trains on all datasets and writes the
checkpoint with its model card. `rivals` trains the other methods on the same data, for the bundled backbone.
docs/tiny.md describes the recipe and the results.
"""

import argparse
from collections.abc import Sequence

from .adapters import build_adapters
from .assembly import DEFAULT_VIT, assemble_tower, compare_tower
from .rivals import build_rivals
from .study import ENTRIES, SEEDS
from .tables import run_and_print


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
    study = commands.add_parser("study", help="evaluate the recipe, leaving out one real dataset at a time")
    adapters = commands.add_parser("adapters", help="train the adapters of the bundled checkpoint")
    for command in (study, adapters):
        command.add_argument("--tower", required=True, help="folder of the tower")
        command.add_argument("--data", nargs="+", required=True, help="folders of real datasets with masks")
        command.add_argument("--output", required=True, help="folder of the features and results of the study")
    study.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="random seeds")
    study.add_argument("--entries", nargs="+", choices=list(ENTRIES), metavar="ENTRY", help="changes of the recipe")
    study.add_argument("--previous", help="another checkpoint to evaluate on the same datasets")
    study.add_argument("--part", default="1/1", help="compute the K-th of N parts: K/N")
    study.set_defaults(run=run_and_print)
    adapters.add_argument("--checkpoint", required=True, help="new folder for the checkpoint")
    adapters.add_argument("--seed", type=int, default=SEEDS[0], help="random seed")
    adapters.set_defaults(run=build_adapters)
    rivals = commands.add_parser("rivals", help="train the other methods for the bundled backbone")
    rivals.add_argument("--data", nargs="+", required=True, help="folders of real datasets with masks")
    rivals.add_argument("--output", required=True, help="folder of the features and the synthetic images")
    rivals.add_argument("--folder", required=True, help="folder for a new checkpoint of each method")
    rivals.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="names of methods; default: all that are trained"
    )
    rivals.set_defaults(run=build_rivals)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    options = make_parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
