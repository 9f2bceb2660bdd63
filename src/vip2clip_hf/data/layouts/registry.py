"""Registry of all layouts."""

from .base import Layout
from .class_folders import CLASSES
from .colondb import COLONDB
from .dagm import DAGM
from .flat import FLAT
from .headct import HEADCT
from .hub import HUB
from .image_mask_pairs import PAIRS
from .isic import ISIC
from .kolektor import KOLEKTOR
from .meta_json import META
from .mvtec_tree import TREE
from .table import TABLE
from .visa import VISA


# Tried on a folder in this order.
FOLDER_LAYOUTS = (META, TREE, CLASSES, PAIRS, TABLE, FLAT)
# Official releases of single benchmarks. Only tried if the benchmark is specified.
BENCHMARK_LAYOUTS = (VISA, KOLEKTOR, DAGM, HEADCT, ISIC, COLONDB)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (*FOLDER_LAYOUTS, HUB, *BENCHMARK_LAYOUTS)}


__all__ = ["BENCHMARK_LAYOUTS", "FOLDER_LAYOUTS", "LAYOUTS"]
