"""Steps of the other methods outside of the vision tower, compared with a plain reading of their published codes."""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .rivals_adaclip import adaclip_steps
from .rivals_anomalyclip import anomalyclip_steps
from .rivals_april_gan import april_gan_steps


class Size(NamedTuple):
    """Size of a backbone and its images."""

    width: int
    joint: int
    patch: int
    side: int

    @property
    def grid(self) -> int:
        """Number of patches along one side."""
        return self.side // self.patch


SIZES = {"tiny": Size(192, 192, 16, 320), "ViT-L/14": Size(1024, 768, 14, 518)}


class Step(NamedTuple):
    """A step: ours, and the reading of the published code. Both return tensors to compare."""

    ours: Callable[[], tuple[torch.Tensor, ...]]
    published: Callable[[], tuple[torch.Tensor, ...]]


# Steps of each method.
METHODS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "april-gan": lambda size: {label: Step(*pair) for label, pair in april_gan_steps(size).items()},
    "anomalyclip": anomalyclip_steps,
    "adaclip": adaclip_steps,
}


def compare(step: Any, repeats: int, threads: int) -> tuple[float, float, float]:
    """Return the shortest times in milliseconds, interleaved, and the largest difference of the results."""
    # With one thread, the time of other programs does not count.
    clock = time.process_time if threads == 1 else time.perf_counter
    pairs = zip(*(function() for function in step))  # prepares references, too
    difference = max((ours - other).abs().max().item() for ours, other in pairs)
    least = [float("inf")] * 2
    for _ in range(repeats):
        for place, function in enumerate(step):
            start = clock()
            function()
            least[place] = min(least[place], 1000 * (clock() - start))
    return least[0], least[1], difference


def benchmark_rivals(options: argparse.Namespace) -> None:
    """Print the time of each step, and its ratio to that of the reading of the published code."""
    torch.set_num_threads(options.threads)
    for name in options.sizes:
        for method in options.methods:
            torch.manual_seed(0)
            print(f"{method}, {name}")
            for label, step in METHODS[method](SIZES[name]).items():
                ours, published, difference = compare(step, options.repeats, options.threads)
                print(
                    f"  {label:34s} {ours:9.1f} ms, published {published:9.1f} ms, ratio {ours / published:.2f}, "
                    f"difference {difference:.0e}",
                    flush=True,
                )


__all__ = ["METHODS", "SIZES", "Size", "Step", "benchmark_rivals"]
