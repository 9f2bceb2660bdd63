"""`python -m benchmarks NAME`."""

import argparse
import platform
from collections.abc import Sequence

from .data import benchmark_data
from .inference import benchmark_forward, benchmark_inference
from .metrics import benchmark_metrics
from .training import benchmark_step, benchmark_training


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Benchmarks. Each compares with another way to do the same in the same run.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="index a folder; compared with imagefolder of datasets")
    data.add_argument("--images", type=int, default=5000)
    data.add_argument("--repeats", type=int, default=5)
    data.set_defaults(run=benchmark_data)
    metrics = commands.add_parser("metrics", help="pixel metrics of one category; compared with scikit-learn")
    metrics.add_argument("--maps", type=int, default=200)
    metrics.add_argument("--side", type=int, default=518)
    metrics.add_argument("--repeats", type=int, default=3)
    metrics.set_defaults(run=benchmark_metrics)
    training = commands.add_parser("training", help="ten epochs with the feature cache; compared with none")
    training.add_argument("--clip", help="folder of a CLIP (default: random weights of the size of ViT-L/14)")
    training.add_argument("--images", type=int, default=6)
    training.add_argument("--epochs", type=int, default=10)
    training.add_argument("--repeats", type=int, default=3)
    training.add_argument("--bf16", action="store_true")
    training.set_defaults(run=benchmark_training)
    step = commands.add_parser("step", help="one cached training step; used by training")
    step.add_argument("--clip")
    step.set_defaults(run=benchmark_step)
    inference = commands.add_parser("inference", help="stages of a forward pass; compared with a textbook one")
    inference.add_argument("--model", help="checkpoint (default: random weights of the size of ViT-L/14)")
    inference.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    inference.add_argument("--dtypes", nargs="*", default=["bfloat16"], choices=["bfloat16", "float16"])
    inference.add_argument("--towers", nargs="*", default=[], choices=["eager", "channels_last", "compile"])
    inference.add_argument("--repeats", type=int, default=3)
    inference.set_defaults(run=benchmark_inference)
    forward = commands.add_parser("forward", help="memory of one forward pass; used by inference")
    forward.add_argument("--model")
    forward.add_argument("--dtype", default="float32")
    forward.set_defaults(run=benchmark_forward)
    return parser


def main(arguments: Sequence[str] | None = None):
    options = make_parser().parse_args(arguments)
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}")
    options.run(options)


if __name__ == "__main__":
    main()
