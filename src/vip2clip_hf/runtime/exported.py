"""Read the folder of an export: what the pipeline reads from a checkpoint, without torch."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..models.vip2clip.arguments_vip2clip import READING_ARGUMENTS, label_names, reading_arguments
from ..models.vip2clip.checkpoint_files_vip2clip import read_json
from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.image_values_vip2clip import as_channels_first
from ..models.vip2clip.model_values_vip2clip import model_values
from ..models.vip2clip.reference_records_vip2clip import ReferenceOptions


# Version of the entries of `export.json` that the runtime reads.
RUNTIME_VERSION = 1


@dataclass(frozen=True)
class ExportedReferences:
    """
    References that are constants of the graph.

    Args:
        num_photos (`int`): number of photos.
        stored_checksum (`str`): checksum of the bank.
        options ([`ReferenceOptions`]): how the photos were read.
        fingerprint (`dict[str, Any]`): what their scores were computed with.
        stored_scores (`list[float]`): score of each photo, compared with the others, in ascending order.
    """

    num_photos: int
    stored_checksum: str
    options: ReferenceOptions
    fingerprint: dict[str, Any]
    stored_scores: list[float]

    def __len__(self) -> int:
        return self.num_photos

    def checksum(self) -> str:
        """Return the checksum of the bank, which identifies it in calibrations."""
        return self.stored_checksum

    def left_out_scores(self) -> np.ndarray:
        """Return the scores of the photos, each compared with the others, as [`ReferenceBank.left_out_scores`]."""
        return np.asarray(self.stored_scores, dtype=np.float32)


@dataclass(frozen=True)
class ExportedConfig:
    """
    Values of the configuration of the model.

    Args:
        image_size (`int`): side of the images of the model.
        top_k (`int`): number of top patches, a constant of the graph.
        id2label (`dict[int, str]`): names of the labels.
    """

    image_size: int
    top_k: int
    id2label: dict[int, str]


@dataclass(frozen=True)
class ExportedModel:
    """
    What the steps of the pipeline need to know about a model.

    Args:
        config ([`ExportedConfig`]): values of the configuration.
        decision ([`DecisionConfig`]): thresholds, tiles and calibration.
        references ([`ExportedReferences`], *optional*): references in the graph.
        stored_fingerprint (`dict[str, Any]`): what determines the scores.
    """

    config: ExportedConfig
    decision: DecisionConfig
    references: ExportedReferences | None
    stored_fingerprint: dict[str, Any]


@dataclass(frozen=True)
class ImagePreparation:
    """
    Options of the image processor that change images.

    Args:
        size (`tuple[int, int]`): height and width to resize to.
        resample (`int`): a `PIL.Image.Resampling`.
        scaling (`dict[str, Any]`): factor, mean and standard deviation, see [`model_values`].
        reading (`dict[str, Any]`): `bit_depth`, `page` and `channel_order`, those that are set.
    """

    size: tuple[int, int]
    resample: int
    scaling: dict[str, Any]
    reading: dict[str, Any]

    def pixel_values(self, images: Sequence[Image.Image]) -> np.ndarray:
        """
        Prepare images for the graph, like [`ViP2ClipImageProcessor`].

        Args:
            images (`Sequence[PIL.Image.Image]`): images in mode RGB.

        Returns:
            `np.ndarray` of shape `(batch_size, 3, height, width)`: float32.

        Raises:
            ValueError: if a value is not finite.
        """
        return np.stack(
            [
                model_values(as_channels_first(image, self.size, self.resample), False, index, **self.scaling)
                for index, image in enumerate(images)
            ]
        )


def read_export(folder: str | os.PathLike) -> tuple[Path, ExportedModel, ImagePreparation]:
    """
    Read the files next to an exported graph.

    Args:
        folder (`str` or `os.PathLike`): folder of an export to ONNX.

    Returns:
        `tuple`: path of `model.onnx`, [`ExportedModel`] and [`ImagePreparation`].

    Raises:
        OSError: if the folder is not an export to ONNX, a file is missing or damaged, or another version wrote it.
    """
    folder = Path(folder)
    if not (folder / "export.json").is_file():
        kind = "a checkpoint" if (folder / "config.json").is_file() else "not an export"
        if not folder.exists():
            kind = "not an export (there is no such folder)"
        raise OSError(f"{str(folder)!r} is {kind}; expected a folder with export.json, as written by vip2clip export.")
    report = read_json(folder / "export.json")
    if report.get("format") != "onnx":
        raise OSError(f"{str(folder)!r} contains the format {report.get('format')!r}; expected an export to 'onnx'.")
    for name in ("model.onnx", "decision.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise OSError(f"{str(folder / name)!r} is missing; expected the whole folder of the export.")
    found = report.get("runtime")
    if not isinstance(found, Mapping) or found.get("version") != RUNTIME_VERSION:
        version = (report.get("versions") or {}).get("vip2clip_hf")
        raise OSError(
            f"{str(folder)!r} was exported by vip2clip_hf {version}; expected an export that this version of the "
            "runtime reads. Export the checkpoint again."
        )
    try:
        model = ExportedModel(
            ExportedConfig(
                int(report["inputs"]["pixel_values"]["shape"][-1]),
                int(report["decision"]["top_k"]),
                {number: str(name) for number, name in enumerate(found["labels"])},
            ),
            DecisionConfig.from_pretrained(folder),
            _references(report.get("references"), found["fingerprint"]),
            dict(found["fingerprint"]),
        )
        label_names(model.config.id2label)
        return folder / "model.onnx", model, _preparation(read_json(folder / "preprocessor_config.json"))
    except (KeyError, TypeError, ValueError) as error:
        raise OSError(
            f"The files in {str(folder)!r} are not valid: {error!r}. Export the checkpoint again."
        ) from error


def checksum_of_export(graph: Path) -> str:
    """
    Compute the SHA-256 of what the scores of an export depend on: the graph with its weights, and the preparation of
    images.

    Args:
        graph (`pathlib.Path`): path of `model.onnx`.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        OSError: if a file cannot be read.
    """
    found = hashlib.sha256()
    for name in (graph.name, f"{graph.name}.data", "preprocessor_config.json"):
        path = graph.with_name(name)
        if path.exists():
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
        found.update(b"\0")
    return found.hexdigest()


def _references(found: Mapping[str, Any] | None, fingerprint: Mapping[str, Any]) -> ExportedReferences | None:
    if found is None:
        return None
    names = [field.name for field in fields(ReferenceOptions)]
    options = ReferenceOptions(**{name: found[name] for name in names})
    checksum, scores = str(found["checksum"]), [float(score) for score in found["left_out_scores"]]
    # Of the model in float32. A graph with integers has another fingerprint, so its p-values are None.
    return ExportedReferences(int(found["num_photos"]), checksum, options, {**fingerprint, "dtype": "float32"}, scores)


def _preparation(found: Mapping[str, Any]) -> ImagePreparation:
    scaling: dict[str, Any] = {"factor": float(found["rescale_factor"]) if found["do_rescale"] else None}
    if found["do_normalize"]:
        scaling.update(mean=found["image_mean"], std=found["image_std"])
    size = (int(found["size"]["height"]), int(found["size"]["width"]))
    reading = {name: found[name] for name in READING_ARGUMENTS if found.get(name) is not None}
    return ImagePreparation(size, int(found["resample"]), scaling, reading_arguments(reading))


__all__ = ["RUNTIME_VERSION", "ExportedModel", "ImagePreparation", "checksum_of_export", "read_export"]
