"""The 15 benchmarks of the paper."""

from typing import TYPE_CHECKING

from ...utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .benchmark import Benchmark as Benchmark
    from .registry import BENCHMARKS as BENCHMARKS, get_benchmark as get_benchmark
