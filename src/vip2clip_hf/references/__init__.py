"""Adapt a checkpoint to a product with photos of good parts."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .adaptation import Adaptation as Adaptation
    from .adapting import adapt as adapt
