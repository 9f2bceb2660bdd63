"""Results of a prediction for people: report, tables, and photos sorted into folders."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .csv_files import write_csv as write_csv
    from .page import build_report as build_report, write_report as write_report
    from .pictures import Picture as Picture
    from .predictions import Prediction as Prediction, Predictions as Predictions
    from .reading import read_predictions as read_predictions
    from .sorting import sort_photos as sort_photos
    from .tables import write_xlsx as write_xlsx
