"""Training of the adapters."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .arguments import ViP2ClipTrainingArguments as ViP2ClipTrainingArguments
    from .augmentation import Augmentation as Augmentation
    from .feature_cache import FeatureCache as FeatureCache
    from .optimization import parameter_groups as parameter_groups
    from .trainer import ViP2ClipTrainer as ViP2ClipTrainer
