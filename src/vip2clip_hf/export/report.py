"""Files written next to an exported graph: `export.json` and `README.md`."""

import importlib.metadata
from dataclasses import asdict
from typing import Any

from .._version import __version__
from ..models.vip2clip.arguments_vip2clip import label_names
from ..models.vip2clip.fingerprint_vip2clip import model_fingerprint
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.pipeline_steps_vip2clip import decision_of
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..runtime.exported import RUNTIME_VERSION
from .graph import REFERENCE_OUTPUTS


def describe_export(
    model: ViP2ClipForAnomalyDetection,
    name: str,
    details: dict[str, Any],
    deviation: dict[str, float],
    tolerance: float,
    settings: dict[str, Any],
    references: ReferenceBank | None = None,
) -> dict[str, Any]:
    """
    Create the content of `export.json`.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the exported model.
        name (`str`): format, "onnx" or "torch".
        details (`dict`): entries of the format, such as `opset`.
        deviation (`dict[str, float]`): largest absolute difference from the model by output.
        tolerance (`float`): allowed difference.
        settings (`dict[str, Any]`): settings that scores depend on, see [`score_settings`].
        references ([`ReferenceBank`], *optional*): photos of good parts in the graph.

    Returns:
        `dict`: format, inputs, outputs, thresholds, the decision (without calibration scores), references, deviation,
        tolerance and versions of the packages.
    """
    size = model.config.image_size
    decision, calibrated = decision_of(model, {"references": references})
    one: dict[str, Any] = {"shape": ["batch_size"], "dtype": "float32"}
    maps: dict[str, Any] = {"shape": ["batch_size", size, size], "dtype": "float32"}
    outputs = {"scores": one, "anomaly_maps": maps}
    if references is not None:
        outputs.update(zip(REFERENCE_OUTPUTS, (one, one, maps)))
    packages = ("torch", "transformers", *(("onnx", "onnxscript", "onnxruntime") if name == "onnx" else ()))
    return {
        "format": name,
        **details,
        "inputs": {"pixel_values": {"shape": ["batch_size", 3, size, size], "dtype": "float32"}},
        "outputs": outputs,
        "image_threshold": decision.image_threshold,
        "pixel_threshold": decision.pixel_threshold,
        "decision": {
            **{name: value for name, value in decision.to_dict().items() if not name.endswith("_scores")},
            "top_k": settings["top_k"],
            "calibrated": calibrated,
        },
        "runtime": {
            "version": RUNTIME_VERSION,
            "labels": list(label_names(model.config.id2label)),
            "fingerprint": model_fingerprint(model),
        },
        "references": None if references is None else _describe_references(references),
        "quantization": None,
        "largest_deviation": deviation,
        "tolerance": tolerance,
        "versions": {"vip2clip_hf": __version__, **{key: importlib.metadata.version(key) for key in packages}},
    }


def _describe_references(references: ReferenceBank) -> dict[str, Any]:
    return {
        "num_photos": len(references),
        "num_patches": references.features.shape[1],
        "checksum": references.checksum(),
        "megabytes": round(references.nbytes / 1024**2, 3),
        # p-values without a calibration are relative to these scores.
        "left_out_scores": [float(str(score)) for score in references.left_out_scores()]
        if len(references) > 1
        else [],
        **asdict(references.options),
    }


def export_card(report: dict[str, Any], image_processor: ViP2ClipImageProcessor) -> str:
    """
    Create the README of an export, with an example that runs without this package.

    Args:
        report (`dict`): content of `export.json`.
        image_processor ([`ViP2ClipImageProcessor`]): image processor of the model.

    Returns:
        `str`: the README in Markdown.
    """
    size = report["inputs"]["pixel_values"]["shape"][-1]
    image_threshold, pixel_threshold = report["image_threshold"], report["pixel_threshold"]
    if report["format"] == "onnx":
        title = f"`model.onnx`, opset {report['opset']}"
        imports = "import numpy as np\nimport onnxruntime"
        load = 'session = onnxruntime.InferenceSession("model.onnx")'
        run = 'scores, anomaly_maps = session.run(["scores", "anomaly_maps"], {"pixel_values": pixel_values})'
    else:
        title = "`model.pt2`, a torch.export program"
        imports = "import numpy as np\nimport torch"
        load = 'model = torch.export.load("model.pt2").module()'
        run = "with torch.no_grad():\n    scores, anomaly_maps = model(torch.from_numpy(pixel_values))[:2]"
    decision = report["decision"]
    notes = [f"The score uses the top {decision['top_k']} patches of each layer."]
    if references := report["references"]:
        photos = (
            "1 photo of a good part"
            if references["num_photos"] == 1
            else (f"{references['num_photos']} photos of good parts")
        )
        notes.append(
            f"The graph contains features of {photos} ({references['megabytes']:.1f} MB in float16). Scores and maps "
            "combine the zero-shot result with the distances to these features."
        )
    if decision["min_region_area"]:
        notes.append(
            "In the mask, remove regions (connected by edges or corners) that are smaller than "
            f"{decision['min_region_area']:g} of the pixels of the map."
        )
    if decision["tile_size"]:
        notes.append(
            f"The thresholds are for tiles: split images with a side of more than {decision['tile_size']} pixels into "
            f"square tiles of this side that overlap by {decision['tile_overlap']:g} of it, as `tile_boxes` in "
            "`tiling_vip2clip.py` does. The score is the largest score of the tiles."
        )
    if decision["calibration"] and not decision["calibrated"]:
        notes.append("The thresholds were calibrated for other scores than those of this graph.")
    if quantization := report["quantization"]:
        scores, maps = (quantization["deviation"][name] for name in ("scores", "anomaly_maps"))
        notes.append(
            "The linear layers of the vision tower compute with 8-bit integers. On "
            f"{quantization['num_images']} photos, scores differ from those in float32 by {scores['mean']:.2g} on "
            f"average (at most {scores['largest']:.2g}), maps by {maps['mean']:.2g} (at most {maps['largest']:.2g})."
        )
    deviation = ", ".join(f"{key} {value:.1e}" for key, value in report["largest_deviation"].items())
    versions = ", ".join(f"{key} {value}" for key, value in report["versions"].items())
    normalised = image_processor.do_normalize
    mean = list(image_processor.image_mean) if normalised else [0.0] * 3
    std = list(image_processor.image_std) if normalised else [1.0] * 3
    scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    return f"""# ViP²-CLIP, exported

{title}. Computes the probability that an image is anomalous, and a map of the anomalies.

| | name | shape | |
|---|---|---|---|
| input | `pixel_values` | (batch_size, 3, {size}, {size}) float32 | batches of any size |
| output | `scores` | (batch_size,) float32 | in [0, 1]; anomalous above {image_threshold} |
| output | `anomaly_maps` | (batch_size, {size}, {size}) float32 | in [0, 1]; anomalous above {pixel_threshold} |

```python
{imports}
from PIL import Image, ImageOps

SCALE = np.float32({scale})
MEAN = np.float32({mean})
STD = np.float32({std})

{load}
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
pixels = np.asarray(photo.resize(({size}, {size}), Image.Resampling({int(image_processor.resample)})))
pixel_values = ((pixels * SCALE - MEAN) / STD).transpose(2, 0, 1)[None]
{run}
anomalous = {"scores" if report["format"] == "onnx" else "scores.numpy()"} > np.float32({image_threshold})
mask = {"anomaly_maps" if report["format"] == "onnx" else "anomaly_maps.numpy()"} > np.float32({pixel_threshold})
```

{" ".join(notes)} To resize a mask, resize the map with bilinear interpolation and compare it with the threshold.

`config.json`, `decision.json` and `preprocessor_config.json` are copied from the checkpoint. `export.json` contains
the information above as JSON. Largest deviation from the model in PyTorch: {deviation}. Exported with {versions}.
"""


__all__ = ["describe_export", "export_card"]
