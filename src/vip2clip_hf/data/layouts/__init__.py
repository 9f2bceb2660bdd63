"""Dataset layouts, one module each, and their registry."""

from typing import TYPE_CHECKING

from ...utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .base import Layout as Layout, Reading as Reading, Row as Row
    from .registry import BENCHMARK_LAYOUTS as BENCHMARK_LAYOUTS, FOLDER_LAYOUTS as FOLDER_LAYOUTS, LAYOUTS as LAYOUTS
