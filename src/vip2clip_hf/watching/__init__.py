"""Watch a folder: predict each new photo once, and append its row to a table."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .running import watch_folder as watch_folder
