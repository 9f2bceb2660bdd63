"""Write checkpoint folders and model cards, and find the bundled checkpoint."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .bundled import bundled_checkpoint as bundled_checkpoint, example_photos as example_photos
    from .card import describe_calibration as describe_calibration, model_card as model_card, write_card as write_card
    from .saving import check_target as check_target, write_checkpoint as write_checkpoint
