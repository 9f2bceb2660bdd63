"""Datasets: paper benchmarks, your own folders and tables, Hub datasets and synthetic images.

Indexing a folder needs only the base installation. Loading it as a `datasets.Dataset` needs the extra `data`.
"""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .benchmarks import BENCHMARKS as BENCHMARKS, Benchmark as Benchmark, get_benchmark as get_benchmark
    from .checks import DataCheck as DataCheck, check_data as check_data
    from .collator import ViP2ClipCollator as ViP2ClipCollator
    from .index import DataIndex as DataIndex, features as features
    from .kolektor_thirds import write_kolektor_thirds as write_kolektor_thirds
    from .loading import (
        index_benchmark as index_benchmark,
        index_folder as index_folder,
        load_benchmark as load_benchmark,
        load_folder as load_folder,
    )
    from .provenance import (
        describe_training_set as describe_training_set,
        find_training_overlap as find_training_overlap,
    )
    from .report import CategoryReport as CategoryReport, DataReport as DataReport
    from .sources import DataSource as DataSource
