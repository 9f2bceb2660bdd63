"""The 15 benchmarks of the paper, by name. docs/benchmarks.md has the folder trees."""

from .benchmark import Benchmark
from .industrial import INDUSTRIAL
from .medical import MEDICAL


BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (*INDUSTRIAL, *MEDICAL)}


def get_benchmark(name: str) -> Benchmark:
    """
    A benchmark by its name, in any case.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    found = BENCHMARKS.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"Unknown benchmark {name!r}; known ones are {', '.join(BENCHMARKS)}.")
    return found


__all__ = ["BENCHMARKS", "get_benchmark"]
