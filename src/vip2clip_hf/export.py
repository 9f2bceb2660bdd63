"""A checkpoint as one graph from pixel values to scores and maps, for where neither this package nor transformers is:
ONNX for onnxruntime and others, or a program of torch.export. What does not depend on the image is computed before."""

import contextlib
import copy
import importlib.metadata
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .data.synthetic import generate_image
from .files import check_new_folder, new_folder, umask
from .image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from .modeling_vip2clip import ViP2ClipForAnomalyDetection
from .prompt_prefix_vip2clip import ViP2ClipPromptPrefix


FORMATS = ("onnx", "torch")
DEFAULT_OPSET = 18
OUTPUTS = ("scores", "anomaly_maps")
# One protobuf message holds less than 2 GiB; graph and names need some of it.
_LARGEST_ONNX_FILE = 1_900_000_000


class ExportedDetector(nn.Module):
    """
    The graph that is exported. The model given is left as it is; weights in float32 on the CPU are shared with it.

    Held as constants are the position table at the image size, the embeddings of the few tokens that prompts are made
    of (instead of CLIP's table of 49408), keys and values of what all prompts begin with, and without image
    conditioning the prompts' embeddings, so that the text tower is left out.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model, in float32.

    Raises:
        ValueError: a model that cannot be exported; names the field of the configuration.
    """

    def __init__(self, model: ViP2ClipForAnomalyDetection):
        super().__init__()
        check_exportable(model)
        with torch.inference_mode(False), torch.no_grad():
            self.model = _private_copy(model)
            prefix = self.model.get_prompt_prefix()
            self.prefix_length = 0 if prefix is None else prefix.length
            self.num_blocks = 0 if prefix is None else len(prefix.keys)
            _keep_used_tokens(self.model)
            _resize_positions(self.model)
            if self.model.config.use_image_conditioning:
                for number in range(self.num_blocks):
                    self.register_buffer(f"prefix_key_{number}", prefix.keys[number].clone())
                    self.register_buffer(f"prefix_value_{number}", prefix.values[number].clone())
            else:
                nothing = torch.zeros(1, self.model.config.clip_config.projection_dim)
                self.register_buffer("text_embeds", self.model.get_prompt_embeds(nothing).clone())
                self.model.clip.text_model = self.model.clip.text_projection = None
                self.model.prompt_learner = self.model.image_conditioned_adapter = None

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixel_values` (B, 3, S, S) float32 -> `scores` (B,) and `anomaly_maps` (B, S, S), both in [0, 1]."""
        model = self.model
        image_embeds, patch_embeds = model.get_vision_features(pixel_values)
        if model.config.use_image_conditioning:
            text_embeds = model.encode_prompts(model.get_prompts(image_embeds), self._prefix())
        else:
            text_embeds = self.text_embeds.expand(pixel_values.shape[0], -1, -1)
        aligned = model.align(text_embeds, patch_embeds, image_embeds)
        return aligned.scores, model.get_anomaly_maps(aligned.layer_maps)

    def _prefix(self) -> ViP2ClipPromptPrefix | None:
        if self.num_blocks == 0:
            return None
        keys, values = (
            [getattr(self, f"prefix_{kind}_{number}") for number in range(self.num_blocks)]
            for kind in ("key", "value")
        )
        return ViP2ClipPromptPrefix(self.prefix_length, keys, values)


def check_exportable(model: ViP2ClipForAnomalyDetection):
    """
    Raises:
        ValueError: a model that cannot be exported; names the field of the configuration and what would do.
    """
    config = model.config
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("Weights of the model are offloaded or on the meta device; load it without device_map.")
    found = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if found != ["float32"]:
        raise ValueError(
            f"dtype is {' and '.join(found)}; models are exported in float32. Load it with dtype=torch.float32."
        )
    for tower in (config.clip_config.vision_config, config.clip_config.text_config):
        attention = tower._attn_implementation
        if attention not in ("eager", "sdpa"):
            raise ValueError(
                f"attn_implementation is {attention!r}; expected 'sdpa' or 'eager', of which graphs can be made. Load "
                'the model with attn_implementation="sdpa".'
            )
    channels = config.clip_config.vision_config.num_channels
    if channels != 3:
        raise ValueError(
            f"clip_config.vision_config.num_channels is {channels}; expected 3, the images of ViP2ClipImageProcessor."
        )


def export_onnx(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    *,
    opset: int = DEFAULT_OPSET,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """
    Write `model.onnx` with what is needed to use it: from pixel values to scores and maps, with batches of any size.

    It is run with onnxruntime and compared with the model before it is put in place.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model, in float32; it is left as it is.
        image_processor ([`ViP2ClipImageProcessor`]):
            Its image processor.
        output (`str` or `os.PathLike`):
            Folder to write; must be empty or not exist. `model.onnx` (weights beside it in `model.onnx.data` where
            one file would be too large), `config.json`, `preprocessor_config.json`, `export.json`, `README.md`.
        opset (`int`, defaults to 18):
            Version of ONNX's operators, 18 or newer.
        tolerance (`float`, defaults to 1e-4):
            How far scores and maps may be from the model's.

    Returns:
        `dict`: what stands in `export.json`, and `files` (`dict[str, int]`), their sizes in bytes.

    Raises:
        ValueError: a model that cannot be exported, an opset that is not known, an image processor that does not fit.
        OSError: the folder is not empty or cannot be written.
        RuntimeError: the exported file gives other numbers. Nothing is left in the folder.
        ImportError: onnx, onnxruntime or onnxscript is missing.
    """
    check_packages("onnx")
    check_opset(opset)

    def write(detector: ExportedDetector, folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            exported = torch.onnx.export(
                detector,
                **_example(detector),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=list(OUTPUTS),
                opset_version=opset,
                verbose=False,
            )
            graph, found = exported.model.graph, exported.model.opset_imports.get("")
            if found != opset:
                raise ValueError(f"opset is {opset}; the installed exporter wrote {found}. Leave it out or take that.")
            for node in graph:  # where in which file of this machine each came from
                node.metadata_props.clear()
            weights = sum(value.const_value.nbytes for value in graph.initializers.values())
            exported.save(path, external_data=weights > _LARGEST_ONNX_FILE)
        return {"opset": opset}

    return _export(model, image_processor, output, "onnx", write, _open_onnx, tolerance)


def export_torch(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    *,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """
    Write `model.pt2`, a program of torch.export: `torch.export.load("model.pt2").module()(pixel_values)` gives scores
    and maps, with batches of any size, where only torch is installed.

    It is loaded again and compared with the model before it is put in place.

    Args:
        model, image_processor, output, tolerance:
            See [`export_onnx`].

    Returns:
        `dict`: see [`export_onnx`].

    Raises:
        ValueError, OSError, RuntimeError: see [`export_onnx`].
    """

    def write(detector: ExportedDetector, folder: Path) -> dict[str, Any]:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(detector, **_example(detector), strict=False)
            for part in program.graph_module.modules():
                for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                    node.meta.pop("stack_trace", None)  # where in which file of this machine it came from
            program.example_inputs = None
            torch.export.save(program, folder / "model.pt2")
        return {}

    return _export(model, image_processor, output, "torch", write, _open_torch, tolerance)


def check_format(name: str):
    """
    Raises:
        ValueError: an unknown format.
    """
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; expected {' or '.join(map(repr, FORMATS))}.")


def check_opset(opset: int):
    """
    Raises:
        ValueError: an opset that the installed onnx does not know, or one before 18.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or isinstance(opset, bool) or not DEFAULT_OPSET <= opset <= newest:
        raise ValueError(f"opset is {opset!r}; expected an integer from {DEFAULT_OPSET} to {newest}.")


def check_packages(name: str):
    """
    Raises:
        ImportError: what a format needs is not installed.
    """
    if name == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"Export to ONNX needs onnx, onnxruntime and onnxscript ({error}): pip install 'vip2clip_hf[export]'."
            ) from error


def _export(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    output: str | os.PathLike,
    name: str,
    write: Callable[[ExportedDetector, Path], dict[str, Any]],
    load: Callable[[Path], Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]],
    tolerance: float,
) -> dict[str, Any]:
    check_new_folder(output)
    check_image_processor(image_processor, model.config.image_size)
    detector = ExportedDetector(model)
    with new_folder(output) as folder:
        details = write(detector, folder)
        deviation = _compare(load(folder), model, image_processor)
        _check_deviation(deviation, name, tolerance)
        model.config.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        report = _describe(model, name, details, deviation, tolerance)
        (folder / "export.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(report, image_processor), encoding="utf-8")
        for path in folder.iterdir():  # some writers make files that only their owner can read
            path.chmod(0o666 & ~umask())
    return {**report, "files": {path.name: path.stat().st_size for path in sorted(Path(output).iterdir())}}


# The graph


def _private_copy(model: ViP2ClipForAnomalyDetection) -> ViP2ClipForAnomalyDetection:
    """The model in eval mode on the CPU, without gradients. Weights that are there already are shared, all else is
    its own."""
    shared = {}
    for parameter in model.parameters():
        weight = parameter.detach().cpu()
        # Of what is made in inference mode it cannot be told whether it is written to, so that nothing could be kept.
        weight = weight.clone() if weight.is_inference() else weight
        shared[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    private = copy.deepcopy(model, shared)
    for module in private.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.cpu()
    return private.eval().requires_grad_(False)


def _keep_used_tokens(model: ViP2ClipForAnomalyDetection):
    """Cut the token table down to the tokens of the prompts, and number these anew."""
    config = model.config
    embeddings = model.clip.text_model.embeddings
    used = [config.bos_token_id, *config.normal_token_ids, *config.anomalous_token_ids, config.eos_token_id]
    number = {token: index for index, token in enumerate(dict.fromkeys(used))}
    rows = embeddings.token_embedding.weight[torch.tensor(list(number))].clone()
    embeddings.token_embedding = nn.Embedding.from_pretrained(rows, freeze=True)
    for name in ("normal_token_ids", "anomalous_token_ids"):
        setattr(config, name, tuple(number[token] for token in getattr(config, name)))
    config.bos_token_id, config.eos_token_id = number[config.bos_token_id], number[config.eos_token_id]


def _resize_positions(model: ViP2ClipForAnomalyDetection):
    """Store the position table of the vision tower at the size of the model's images."""
    embeddings, size = model.clip.vision_model.embeddings, model.config.image_size
    table = embeddings.interpolate_pos_encoding(torch.empty(0), size, size)[0].clone()
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=True)


def _example(detector: ExportedDetector) -> dict[str, Any]:
    """What the exporters are told of the input."""
    size = detector.model.config.image_size
    batch = torch.export.Dim("batch_size", min=1)
    return {"args": (torch.zeros(2, 3, size, size),), "dynamic_shapes": {"pixel_values": {0: batch}}}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own workings."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), open(os.devnull, "w", encoding="utf-8") as nowhere:
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            with contextlib.redirect_stdout(nowhere):
                yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


# The comparison


def _open_onnx(folder: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: tuple(session.run(list(OUTPUTS), {"pixel_values": pixel_values}))


def _open_torch(folder: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    module = torch.export.load(folder / "model.pt2").module()

    def run(pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            scores, maps = module(torch.from_numpy(pixel_values))
        return scores.numpy(), maps.numpy()

    return run


def _compare(
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
) -> dict[str, float]:
    """The largest differences from the model, with noise and generated pictures, in batches of one, two and three."""
    size = model.config.image_size
    pictures = [generate_image("dots", "scratch", 128, 1)[0], generate_image("weave", None, 128, 2)[0]]
    noise = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    images = np.concatenate([noise, image_processor(pictures, return_tensors="np")["pixel_values"]])
    with torch.inference_mode(False), torch.no_grad():
        expected = _private_copy(model)(torch.from_numpy(images))
    deviation = dict.fromkeys(OUTPUTS, 0.0)
    for batch in (slice(0, 3), slice(1, 3), slice(0, 1)):
        for name, found in zip(OUTPUTS, run(np.ascontiguousarray(images[batch]))):
            wanted = expected[name].numpy()[batch]
            if found.shape != wanted.shape:
                raise RuntimeError(f"The exported file gives {name} of shape {found.shape}; expected {wanted.shape}.")
            deviation[name] = float(np.maximum(deviation[name], np.abs(found - wanted).max()))
    return deviation


def _check_deviation(deviation: dict[str, float], name: str, tolerance: float):
    wrong = {key: value for key, value in deviation.items() if not value <= tolerance}  # NaN is wrong as well
    if wrong:
        found = " and ".join(f"{key} by {value:.3g}" for key, value in wrong.items())
        raise RuntimeError(
            f"The exported {name} file gives other numbers than the model: {found}; expected at most {tolerance:g}. "
            "Nothing was written."
        )


# What is written beside the graph


def _describe(
    model: ViP2ClipForAnomalyDetection,
    name: str,
    details: dict[str, Any],
    deviation: dict[str, float],
    tolerance: float,
) -> dict[str, Any]:
    from . import __version__

    size = model.config.image_size
    packages = ("torch", "transformers", *(("onnx", "onnxscript", "onnxruntime") if name == "onnx" else ()))
    return {
        "format": name,
        **details,
        "inputs": {"pixel_values": {"shape": ["batch_size", 3, size, size], "dtype": "float32"}},
        "outputs": {
            "scores": {"shape": ["batch_size"], "dtype": "float32"},
            "anomaly_maps": {"shape": ["batch_size", size, size], "dtype": "float32"},
        },
        "image_threshold": model.config.image_threshold,
        "pixel_threshold": model.config.pixel_threshold,
        "largest_deviation": deviation,
        "tolerance": tolerance,
        "versions": {"vip2clip_hf": __version__, **{key: importlib.metadata.version(key) for key in packages}},
    }


def _card(report: dict[str, Any], image_processor: ViP2ClipImageProcessor) -> str:
    size = report["inputs"]["pixel_values"]["shape"][-1]
    image_threshold, pixel_threshold = report["image_threshold"], report["pixel_threshold"]
    if report["format"] == "onnx":
        title = f"`model.onnx`, opset {report['opset']}"
        imports = "import numpy as np\nimport onnxruntime"
        load = 'session = onnxruntime.InferenceSession("model.onnx")'
        run = 'scores, anomaly_maps = session.run(["scores", "anomaly_maps"], {"pixel_values": pixel_values})'
    else:
        title = "`model.pt2`, a program of torch.export"
        imports = "import numpy as np\nimport torch"
        load = 'model = torch.export.load("model.pt2").module()'
        run = "with torch.no_grad():\n    scores, anomaly_maps = model(torch.from_numpy(pixel_values))"
    deviation = ", ".join(f"{key} {value:.1e}" for key, value in report["largest_deviation"].items())
    versions = ", ".join(f"{key} {value}" for key, value in report["versions"].items())
    normalised = image_processor.do_normalize
    mean = list(image_processor.image_mean) if normalised else [0.0] * 3
    std = list(image_processor.image_std) if normalised else [1.0] * 3
    scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    return f"""# ViP²-CLIP, exported

{title}. Finds defects: the probability that an image is anomalous, and where.

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
```

`config.json` and `preprocessor_config.json` are those of the checkpoint, `export.json` says the above for programs.
Largest deviation from the model in PyTorch: {deviation}. Written with {versions}.
"""


__all__ = ["ExportedDetector", "check_exportable", "export_onnx", "export_torch"]
