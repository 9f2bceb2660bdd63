"""Choose thresholds from your own images."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .calibration import Calibration as Calibration
    from .detection import Detection as Detection, estimate_detection as estimate_detection
    from .from_labels import calibrate_labelled as calibrate_labelled
    from .from_normal import calibrate as calibrate
    from .saving import save_calibration as save_calibration
