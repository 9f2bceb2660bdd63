"""Registry of the 15 benchmarks of the paper. docs/benchmarks.md shows their folder trees."""

from .benchmark import Benchmark
from .industrial import INDUSTRIAL
from .medical import MEDICAL


BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (*INDUSTRIAL, *MEDICAL)}


def get_benchmark(name: str) -> Benchmark:
    """
    Get a benchmark by name.

    Args:
        name (`str`): name such as `"mvtec"`. Case is ignored.

    Returns:
        `Benchmark`: the entry of `BENCHMARKS`.

    Raises:
        ValueError: if the name is unknown.
    """
    found = BENCHMARKS.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"Unknown benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}.")
    return found


__all__ = ["BENCHMARKS", "get_benchmark"]
