"""Handler of Hugging Face Inference Endpoints: the files for a checkpoint, and what they run."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from .._version import __version__
from ..models.vip2clip.image_sources_vip2clip import content_of_base64
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.results_vip2clip import AnomalyDetectionResult
from ..utils.files import write_atomically


logger = logging.getLogger(__name__)
HANDLER_NAME, REQUIREMENTS_NAME = "handler.py", "requirements.txt"
# First words of generated files. A file without them was written by a person and is kept.
MARK = "Written by vip2clip_hf"
HANDLER = f'''"""{MARK}: handler of Hugging Face Inference Endpoints. Delete this line to keep your changes."""

from vip2clip_hf.hub.endpoint import EndpointHandler


__all__ = ["EndpointHandler"]
'''
# Images in a request.
MAX_IMAGES = 64
# Parameters of a request by what they change: the result of the pipeline, or its form as JSON.
CALL_PARAMETERS = ("threshold", "top_k", "tile_size", "tile_overlap", "heatmap", "regions")
FORM_PARAMETERS = ("mask", "anomaly_map")


def write_endpoint(folder: str | os.PathLike[str], requirement: str | None = None) -> list[str]:
    """
    Write the files of a handler for Inference Endpoints to a checkpoint folder: `handler.py` and `requirements.txt`.

    Files that you wrote or changed, without the line that marks them as generated, are kept.

    Args:
        folder (`str` or `os.PathLike`):
            Checkpoint folder, see [`save_checkpoint`].
        requirement (`str`, *optional*):
            What pip installs in the endpoint. Defaults to this version of the package, `"vip2clip_hf==VERSION"`. If
            the version is not on PyPI, pass the address of a wheel or of a Git repository.

    Returns:
        `list[str]`: names of the files.

    Raises:
        OSError: if the folder is not a checkpoint of ViP²-CLIP, or cannot be written.
        ValueError: if the requirement is not one line.
    """
    folder = Path(folder)
    requirement = f"vip2clip_hf=={__version__}" if requirement is None else requirement.strip()
    if not requirement or len(requirement.splitlines()) != 1:
        raise ValueError(f"endpoint_requirement is {requirement!r}; expected one line, as in a requirements file.")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = found.get("model_type") if isinstance(found, dict) else None
    except (OSError, ValueError) as error:
        raise OSError(f"{str(folder)!r} does not contain a config.json that can be read: {error}") from error
    if kind != "vip2clip":
        raise OSError(
            f"{str(folder)!r} has model_type {kind!r}; expected 'vip2clip'. There is no handler for other methods."
        )
    requirements = f"# {MARK}. Delete this line to keep your changes.\n{requirement}\nscipy>=1.11\n"
    for name, content in ((HANDLER_NAME, HANDLER), (REQUIREMENTS_NAME, requirements)):
        path = folder / name
        if not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
            write_atomically(path, content)
    return [HANDLER_NAME, REQUIREMENTS_NAME]


class EndpointHandler:
    """
    What an Inference Endpoint calls for each request.

    Args:
        path (`str`): folder of the checkpoint.

    Raises:
        OSError: if there is no checkpoint.
        RuntimeError: if weights are missing.
    """

    def __init__(self, path: str = "") -> None:
        self.detector = AnomalyDetectionPipeline.from_pretrained(path)

    def __call__(self, data: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """
        Answer a request.

        Args:
            data (`dict[str, Any]`):
                - `inputs`: an image, or a list of at most 64 images. An image is its file as base64 or as a data URL,
                  `bytes` or a PIL image. Paths and URLs are refused.
                - `parameters` (`dict`, *optional*): `threshold`, `top_k`, `tile_size` and `tile_overlap`, see
                  [`AnomalyDetectionPipeline`]; `regions` (`bool`, defaults to `True`), `heatmap` (`bool`, defaults to
                  `False`), `mask` (`"rle"`, `"png"` or `"none"`, defaults to `"rle"`) and `anomaly_map` (`"png"` or
                  `"none"`, defaults to `"none"`).

        Returns:
            `dict` or `list[dict]`: the result of the image, see [`AnomalyDetectionResult.to_dict`], or one for each
            image of a list. `{"error": message}` in place of a result that is not possible, or of all of them if the
            request is not valid. Nothing is raised.
        """
        try:
            inputs, parameters = _parts(data)
            call, form = _options(parameters)
            several = isinstance(inputs, (list, tuple))
            images = list(inputs) if several else [inputs]
            if not 1 <= len(images) <= MAX_IMAGES:
                raise ValueError(f"inputs has {len(images)} images; expected 1 to {MAX_IMAGES}.")
        except (TypeError, ValueError) as error:
            return {"error": str(error)}
        results = [self._answer(image, call, form) for image in images]
        return results if several else results[0]

    def _answer(self, image: Any, call: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self.detector(_image(image), **call)
            return AnomalyDetectionResult(result).to_dict(**form)
        except (OSError, TypeError, ValueError) as error:
            return {"error": str(error)}
        except Exception as error:  # of the model, such as too little memory
            logger.exception("A request failed.")
            return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def _parts(data: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(data, Mapping) or "inputs" not in data:
        found = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"The request is {str(found)[:200]}; expected an object with inputs.")
    # `options` belongs to clients of the Hub.
    unknown = sorted(set(map(str, data)) - {"inputs", "parameters", "options"})
    if unknown:
        raise ValueError(f"The request has {unknown[0][:100]!r}; expected inputs and parameters.")
    parameters = data.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ValueError(f"parameters is {str(parameters)[:100]!r}; expected an object.")
    return data["inputs"], dict(parameters or {})


def _options(parameters: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the parameters of a request into arguments of the pipeline and of `to_dict`."""
    known = (*CALL_PARAMETERS, *FORM_PARAMETERS)
    unknown = sorted(set(map(str, parameters)) - set(known))
    if unknown:
        raise ValueError(f"The parameter {unknown[0][:100]!r} is not known; expected {', '.join(sorted(known))}.")
    call: dict[str, Any] = {"regions": True}
    form: dict[str, Any] = {"mask": "rle"}
    for name, value in parameters.items():
        if isinstance(value, str) and name in CALL_PARAMETERS:  # in the address of a request, everything is text
            value = _value(name, value)
        if name in FORM_PARAMETERS:
            form[name] = None if value == "none" else value
            allowed = ("rle", "png") if name == "mask" else ("png",)
            if form[name] not in (*allowed, None):
                raise ValueError(f"{name} is {str(value)[:100]!r}; expected {', '.join(allowed)} or none.")
        else:
            if name in ("heatmap", "regions") and not isinstance(value, bool):
                raise ValueError(f"{name} is {str(value)[:100]!r}; expected true or false.")
            call[name] = value
    return call, form


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text.lower())
    except ValueError as error:
        raise ValueError(f"{name} is {text[:100]!r}; expected a number, true or false.") from error


def _image(image: Any) -> Any:
    """Convert an image of a request to one for the pipeline. Nothing is opened or fetched."""
    if isinstance(image, str):
        return {"bytes": content_of_base64(image)}
    if isinstance(image, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(image)}
    if isinstance(image, Image.Image):
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ValueError(f"The image has {image.width} x {image.height} pixels; expected at most {limit:,}.")
        return image
    raise ValueError(f"An image is {type(image).__name__}; expected the file as base64, or bytes.")


__all__ = ["HANDLER_NAME", "REQUIREMENTS_NAME", "EndpointHandler", "write_endpoint"]
