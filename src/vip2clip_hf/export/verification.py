"""Compare an exported graph with the model in PyTorch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.synthetic.dataset import generate_image
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from .graph import OUTPUTS, REFERENCE_OUTPUTS, private_copy


# A graph: from `pixel_values` (B, 3, S, S) float32 to its outputs, in their order.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


def open_onnx(folder: Path) -> Run:
    """
    Load `model.onnx` with onnxruntime on the CPU.

    Args:
        folder (`pathlib.Path`): folder of the export.

    Returns:
        `Callable`: function from `pixel_values` (B, 3, S, S) float32 to the outputs of the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(None, {"pixel_values": pixel_values})


def open_torch(folder: Path) -> Run:
    """
    Load `model.pt2` with torch on the CPU.

    Args:
        folder (`pathlib.Path`): folder of the export.

    Returns:
        `Callable`: see [`open_onnx`].
    """
    module = torch.export.load(folder / "model.pt2").module()

    def run(pixel_values: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(pixel_values))]

    return run


def compare_with_model(
    run: Run,
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    references: ReferenceBank | None = None,
) -> dict[str, float]:
    """
    Compare the outputs on noise and synthetic images, in batches of one, two and three.

    Args:
        run (`Callable`): the exported graph, from [`open_onnx`] or [`open_torch`].
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        image_processor ([`ViP2ClipImageProcessor`]): image processor of the model.
        references ([`ReferenceBank`], *optional*): photos of good parts in the graph.

    Returns:
        `dict[str, float]`: largest absolute difference of `scores` and `anomaly_maps`; NaN if an output is NaN.

    Raises:
        RuntimeError: if an output has another shape.
    """
    size = model.config.image_size
    synthetic = [generate_image("dots", "scratch", 128, 1)[0], generate_image("weave", None, 128, 2)[0]]
    noise = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    images = np.concatenate([noise, image_processor(synthetic, return_tensors="np")["pixel_values"]])
    with torch.inference_mode(False), torch.no_grad():
        private, options = private_copy(model), {"top_k": model.decision.top_k}
        found = private(torch.from_numpy(images), references=references, **options)
        expected = {name: found[name] for name in OUTPUTS}
        if references is not None:
            alone = private(torch.from_numpy(images), references=None, **options)
            more = (found.reference_scores, alone.scores, alone.anomaly_maps)
            expected.update(zip(REFERENCE_OUTPUTS, more))
    deviation = dict.fromkeys(expected, 0.0)
    for batch in (slice(0, 3), slice(1, 3), slice(0, 1)):
        for name, output in zip(expected, run(np.ascontiguousarray(images[batch]))):
            target = expected[name].numpy()[batch]
            if output.shape != target.shape:
                raise RuntimeError(
                    f"The exported file returns {name} of shape {output.shape}; expected {target.shape}."
                )
            deviation[name] = float(np.maximum(deviation[name], np.abs(output - target).max()))
    return deviation


def check_deviation(deviation: dict[str, float], name: str, tolerance: float) -> None:
    """
    Check the result of [`compare_with_model`].

    Args:
        deviation (`dict[str, float]`): largest absolute difference by output.
        name (`str`): format, for the error message.
        tolerance (`float`): allowed difference.

    Raises:
        RuntimeError: if a difference is larger or NaN.
    """
    # Not `value > tolerance`, which is false for NaN.
    wrong = {key: value for key, value in deviation.items() if not value <= tolerance}
    if wrong:
        found = " and ".join(f"{key} by {value:.3g}" for key, value in wrong.items())
        raise RuntimeError(
            f"The outputs of the exported {name} file differ from those of the model: {found}; expected at most "
            f"{tolerance:g}. Nothing was written."
        )


__all__ = ["check_deviation", "compare_with_model", "open_onnx", "open_torch"]
