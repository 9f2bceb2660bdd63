"""Figures of results, attention and feature layers."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from ..utils.figures import new_figure as new_figure, save_figure as save_figure
    from .attention import (
        attention_figure as attention_figure,
        attention_maps as attention_maps,
        layer_anomaly_maps as layer_anomaly_maps,
        layers_figure as layers_figure,
    )
    from .canvas import heat_colors as heat_colors
    from .results import result_figure as result_figure
    from .sheet import results_figure as results_figure
