"""Export a checkpoint to ONNX or torch.export."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .exporting import export_onnx as export_onnx, export_torch as export_torch
    from .graph import ExportedDetector as ExportedDetector, check_exportable as check_exportable
