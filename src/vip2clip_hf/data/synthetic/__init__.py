"""Synthetic images of surfaces and scenes, with defects and exact masks."""

from typing import TYPE_CHECKING

from ...utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .dataset import generate_image as generate_image, write_dataset as write_dataset
    from .defects import DEFECTS as DEFECTS
    from .scenes import SCENES as SCENES
    from .textures import ALL as ALL, CATEGORIES as CATEGORIES
