"""Command line of the benchmarks: `python -m benchmarks NAME`."""

import argparse
import platform
from collections.abc import Sequence

from .coverage import benchmark_coverage
from .data import benchmark_data
from .detection import benchmark_detection
from .efficiency import VARIANTS, VISA_IMAGES, benchmark_efficiency
from .few_shot import benchmark_few_shot
from .inference import benchmark_forward, benchmark_inference
from .metrics import benchmark_metrics
from .references import benchmark_references
from .rivals import METHODS, SIZES, benchmark_rivals
from .runtime import benchmark_runtime
from .serve import benchmark_serve
from .training import benchmark_step, benchmark_training
from .which_method import benchmark_which_method


def make_parser() -> argparse.ArgumentParser:
    """Create the argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this package and an alternative implementation in the same run.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="listing and labelling of a folder, compared with imagefolder of datasets")
    data.add_argument("--images", type=int, default=5000, help="number of images")
    data.add_argument("--repeats", type=int, default=5, help="number of repeats (median)")
    data.set_defaults(run=benchmark_data)
    which = commands.add_parser("which-method", help="zero-shot, references, and training on own defects")
    which.add_argument(
        "--data", nargs="+", required=True, help="folders of datasets with masks; each is left out once"
    )
    which.add_argument("--output", required=True, help="folder of the features and the synthetic images")
    which.add_argument("--seeds", type=int, nargs="+", default=[111, 112, 113], help="random seeds")
    which.add_argument("--steps", type=int, default=60, help="number of steps on the own defects")
    which.set_defaults(run=benchmark_which_method)
    metrics = commands.add_parser("metrics", help="pixel metrics of one category, compared with scikit-learn")
    metrics.add_argument("--maps", type=int, default=200, help="number of anomaly maps")
    metrics.add_argument("--side", type=int, default=518, help="side of a map in pixels")
    metrics.add_argument("--repeats", type=int, default=3, help="number of repeats (median)")
    metrics.set_defaults(run=benchmark_metrics)
    training = commands.add_parser(
        "training", help="training with the feature cache, compared with training without it"
    )
    training.add_argument(
        "--clip", help="folder of a CLIP checkpoint (default: random weights at the size of ViT-L/14)"
    )
    training.add_argument("--images", type=int, default=6, help="number of images")
    training.add_argument("--epochs", type=int, default=10, help="number of epochs")
    training.add_argument("--repeats", type=int, default=3, help="number of repeats (median)")
    training.add_argument("--bf16", action="store_true", help="train in bfloat16")
    training.set_defaults(run=benchmark_training)
    step = commands.add_parser("step", help="one training step with the cache, started by training")
    step.add_argument("--clip", help="folder of a CLIP checkpoint")
    step.set_defaults(run=benchmark_step)
    inference = commands.add_parser(
        "inference", help="stages of a forward pass, compared with a textbook implementation"
    )
    inference.add_argument("--model", help="checkpoint (default: random weights at the size of ViT-L/14)")
    inference.add_argument("--batch_sizes", type=int, nargs="+", default=[1], help="batch sizes to measure")
    inference.add_argument(
        "--dtypes", nargs="*", default=["bfloat16"], choices=["bfloat16", "float16"],
        help="precisions to compare with float32",
    )  # fmt: skip
    inference.add_argument(
        "--towers", nargs="*", default=[], choices=["eager", "channels_last", "compile"],
        help="alternative ways to run the vision tower",
    )  # fmt: skip
    inference.add_argument("--repeats", type=int, default=3, help="number of repeats (median)")
    inference.set_defaults(run=benchmark_inference)
    forward = commands.add_parser("forward", help="memory of one forward pass, started by inference")
    forward.add_argument("--model", help="checkpoint")
    forward.add_argument("--dtype", default="float32", help="precision of the model")
    forward.set_defaults(run=benchmark_forward)
    few_shot = commands.add_parser("few-shot", help="detection with references, compared with zero-shot")
    few_shot.add_argument("--data", nargs="+", required=True, help="datasets with normal images in the train split")
    few_shot.add_argument("--model", nargs="+", help="one checkpoint, or one per dataset (default: bundled)")
    few_shot.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of references")
    few_shot.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the choice of references")
    few_shot.add_argument("--rate", type=float, default=0.05, help="false-alarm rate")
    few_shot.add_argument("--threads", type=int, default=1, help="threads of torch")
    few_shot.add_argument("--output", help="JSON file with all results")
    few_shot.set_defaults(run=benchmark_few_shot)
    detection = commands.add_parser("detection", help="estimated detection rates, compared with those on real defects")
    detection.add_argument("--data", nargs="+", required=True, help="datasets in the layout of MVTec AD")
    detection.add_argument("--model", help="checkpoint (default: bundled)")
    detection.add_argument("--photos", type=int, default=20, help="number of good photos")
    detection.add_argument("--rate", type=float, default=0.05, help="false-alarm rate")
    detection.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3], help="draws to adapt with")
    detection.add_argument("--threads", type=int, default=1, help="threads of torch")
    detection.set_defaults(run=benchmark_detection)
    coverage = commands.add_parser("coverage", help="false alarms of thresholds from references")
    coverage.add_argument("--data", nargs="+", required=True, help="datasets with normal images in the train split")
    coverage.add_argument("--model", nargs="+", help="one checkpoint, or one per dataset (default: bundled)")
    coverage.add_argument("--k", type=int, nargs="+", default=[10, 20, 30, 50], help="numbers of references")
    coverage.add_argument("--draws", type=int, default=2000, help="number of random choices of references")
    coverage.add_argument("--others", type=int, default=20, help="number of other normal photos in each draw")
    coverage.add_argument("--threads", type=int, default=1, help="threads of torch")
    coverage.set_defaults(run=benchmark_coverage)
    references = commands.add_parser(
        "references", help="comparison of photos with references, compared with the vision tower"
    )
    references.add_argument("--data", nargs="+", help="folders: measure subsets of the patches on their photos")
    references.add_argument(
        "--references", type=int, nargs="+", default=[40], help="numbers of references with --data"
    )
    references.add_argument("--seeds", type=int, default=3, help="number of random subsets with --data")
    references.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    references.add_argument("--small", action="store_true", help="only the bundled checkpoint")
    references.add_argument("--repeats", type=int, default=10, help="number of repeats (shortest)")
    references.set_defaults(run=benchmark_references)
    rivals = commands.add_parser(
        "rivals", help="other methods outside of the vision tower, compared with readings of their published codes"
    )
    rivals.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="methods")
    rivals.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="sizes of backbones")
    rivals.add_argument("--threads", type=int, default=1, help="threads of torch")
    rivals.add_argument("--repeats", type=int, default=5, help="number of repeats (shortest)")
    rivals.set_defaults(run=benchmark_rivals)
    runtime = commands.add_parser("runtime", help="exported models, also with 8-bit integers, compared with PyTorch")
    runtime.add_argument("--model", help="checkpoint (default: bundled)")
    runtime.add_argument("--random-vit-l", action="store_true", help="random weights at the size of ViT-L/14")
    runtime.add_argument("--image_size", type=int, default=518, help="pixels of the images with --random-vit-l")
    runtime.add_argument("--data", nargs="+", help="folders of datasets with masks: measure AUROC on them")
    runtime.add_argument("--calibration_photos", help="folder of photos for int8 (default: examples)")
    runtime.add_argument("--repeats", type=int, default=5, help="number of repeats (shortest)")
    runtime.set_defaults(run=benchmark_runtime)
    efficiency = commands.add_parser(
        "efficiency", help="Table 3 of the paper: time and memory, compared with the vision tower"
    )
    efficiency.add_argument("--model", help="checkpoint (default: bundled)")
    efficiency.add_argument(
        "--random-vit-l", action="store_true", help="random weights at the size of ViT-L/14, 518 pixels"
    )
    efficiency.add_argument("--device", help="device (default: the GPU if there is one)")
    efficiency.add_argument("--threads", type=int, help="threads of torch")
    efficiency.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="variants to measure"
    )
    efficiency.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8], help="batch sizes to measure")
    efficiency.add_argument("--images", type=int, default=8, help="number of images")
    efficiency.add_argument("--repeats", type=int, default=10, help="number of repeats; 0 measures no inference")
    efficiency.add_argument("--warmup", type=int, default=2, help="number of repeats that do not count")
    efficiency.add_argument(
        "--training", action="store_true", help="measure training steps with and without the feature cache"
    )
    efficiency.add_argument(
        "--clip", help="backbone for --training (default: random ViT-Tiny/16, with --random-vit-l that of the model)"
    )
    efficiency.add_argument("--training_batch", type=int, default=8, help="images per training step")
    efficiency.add_argument(
        "--training_images", type=int, default=VISA_IMAGES, help="training images to extrapolate to"
    )
    efficiency.add_argument("--epochs", type=int, default=10, help="epochs to extrapolate to")
    efficiency.add_argument("--variant", default="paper", choices=["paper", "release"], help="variant to train")
    efficiency.add_argument("--output", help="folder for table3.md, .tex, .csv and .json")
    efficiency.set_defaults(run=benchmark_efficiency)
    serve = commands.add_parser("serve", help="photos per second of the server, with and without batching")
    serve.add_argument("--model", help="checkpoint (default: bundled)")
    serve.add_argument("--device", help="device (default: the GPU if there is one)")
    serve.add_argument("--threads", type=int, help="threads of torch")
    serve.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="numbers of parallel clients")
    serve.add_argument("--max-batch", type=int, default=8, help="photos per batch with batching")
    serve.add_argument("--max-wait", type=float, default=10, help="milliseconds that a photo waits for others")
    serve.add_argument("--images", type=int, default=64, help="number of photos")
    serve.add_argument("--side", type=int, default=1024, help="side of a photo in pixels")
    serve.add_argument("--repeats", type=int, default=3, help="number of repeats (median)")
    serve.set_defaults(run=benchmark_serve)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark."""
    options = make_parser().parse_args(arguments)
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}")
    options.run(options)


if __name__ == "__main__":
    main()
