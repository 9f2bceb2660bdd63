"""Data sets: the benchmarks of the paper, one's own folders, tables and Hub data sets, generated ones.

Reading folders needs the base dependencies only; `datasets` (extra `train`) is imported when a data set is made.
"""

from .benchmarks import BENCHMARKS, Benchmark, get_benchmark
from .checks import DataCheck, check_data
from .collator import ViP2ClipCollator
from .index import DataIndex, features
from .loading import index_benchmark, index_folder, load_benchmark, load_folder
from .provenance import describe_training_set, find_training_overlap
from .report import CategoryReport, DataReport


__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "CategoryReport",
    "DataCheck",
    "DataIndex",
    "DataReport",
    "ViP2ClipCollator",
    "check_data",
    "describe_training_set",
    "features",
    "find_training_overlap",
    "get_benchmark",
    "index_benchmark",
    "index_folder",
    "load_benchmark",
    "load_folder",
]
