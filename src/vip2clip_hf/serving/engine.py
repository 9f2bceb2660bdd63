"""The steps of the pipeline for single photos, so that photos of many requests share a batch."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..models.vip2clip.arguments_vip2clip import label_names, threshold_pair
from ..models.vip2clip.fingerprint_vip2clip import is_calibrated
from ..models.vip2clip.image_notices_vip2clip import collect_notices
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.pictures import png_bytes


if TYPE_CHECKING:
    from ..models.vip2clip.results_vip2clip import AnomalyDetectionResult


# Formats of photos. Pillow can open others, some of which start other programs (EPS) or are not photos.
FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
)  # fmt: skip


@dataclass
class Prepared:
    """
    A photo that is ready for the model.

    Args:
        inputs (`dict[str, Any]`): result of `preprocess` of the pipeline.
        notices (`list[str]`): what was converted or guessed when the photo was read.
    """

    inputs: dict[str, Any]
    notices: list[str] = field(default_factory=list)


class Engine:
    """
    Run a pipeline step by step: `prepare` and `finish` for one photo, in any thread, and `forward` for a batch.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline. Its default arguments are used.

    Raises:
        ValueError: if the references of the pipeline were read with other tiles.
    """

    def __init__(self, detector: AnomalyDetectionPipeline) -> None:
        detector.score_settings()  # raises if the references were read with other tiles
        self.detector = detector

    def prepare(self, content: bytes, name: str, heatmap: bool) -> Prepared:
        """
        Read a photo and prepare it for the model.

        Args:
            content (`bytes`): content of an image file.
            name (`str`): its name, for messages. It is not opened.
            heatmap (`bool`): whether a heatmap is wanted, for which the photo is kept.

        Returns:
            [`Prepared`]: the photo.

        Raises:
            OSError: if the photo cannot be read.
            ValueError: if it cannot be read without more information, or has too many tiles.
        """
        options = {**self.detector._preprocess_params, "heatmap": heatmap}
        with collect_notices() as notices:
            inputs = self.detector.preprocess({"bytes": content, "path": name}, **options)
        return Prepared(inputs, list(dict.fromkeys(notices)))

    def forward(self, photos: Sequence[Prepared]) -> list[dict[str, Any]]:
        """
        Run the model on a batch, as the pipeline does.

        Args:
            photos (`Sequence[Prepared]`): the photos.

        Returns:
            `list[dict[str, Any]]`: for each photo, the argument of [`Engine.finish`], on the CPU.
        """
        inputs = [photo.inputs for photo in photos]
        batch = {
            "pixel_values": torch.cat([one["pixel_values"] for one in inputs]),
            "target_size": [one["target_size"] for one in inputs],
            "tiles": [one["tiles"] for one in inputs],
            "image": [None] * len(inputs),
        }
        outputs = self.detector.forward(batch, **self.detector._forward_params)
        scores = outputs["scores"].reshape(-1)
        return [
            {
                "scores": scores[position : position + 1],
                "anomaly_maps": outputs["anomaly_maps"][position][None],
                "target_size": one["target_size"],
                "image": one["image"],
            }
            for position, one in enumerate(inputs)
        ]

    def finish(self, outputs: dict[str, Any], regions: bool) -> "AnomalyDetectionResult":
        """
        Convert the outputs of the model for one photo to the result of the pipeline.

        Args:
            outputs (`dict[str, Any]`): an item of [`Engine.forward`].
            regions (`bool`): whether to list the regions of the mask.

        Returns:
            [`AnomalyDetectionResult`]: result of the pipeline.
        """
        return self.detector.postprocess(outputs, **{**self.detector._postprocess_params, "regions": regions})

    def describe(self) -> dict[str, Any]:
        """
        Describe the model and its decision.

        Returns:
            `dict[str, Any]`: `image_size`, `labels`, `image_threshold`, `pixel_threshold`, `calibrated`, `references`
            (number of photos) and `tile_size`.
        """
        detector, settings = self.detector, self.detector.score_settings()
        decision, references = detector.decision, detector.references
        thresholds = threshold_pair(
            detector._postprocess_params.get("threshold"), (decision.image_threshold, decision.pixel_threshold)
        )
        return {
            "image_size": detector.model.config.image_size,
            "labels": list(label_names(detector.model.config.id2label)),
            "image_threshold": thresholds[0],
            "pixel_threshold": thresholds[1],
            "calibrated": is_calibrated(detector.model, settings, decision),
            "references": 0 if references is None else len(references),
            "tile_size": settings["tile_size"],
        }

    def warm_up(self) -> None:
        """Run the model once, so that the first request is not slower than others."""
        side = self.detector.model.config.image_size
        content = png_bytes(Image.new("RGB", (side, side), (128, 128, 128)))
        self.finish(self.forward([self.prepare(content, "warm-up", heatmap=True)])[0], regions=True)


def measure_photo(content: bytes, max_pixels: int) -> int:
    """
    Read the header of a photo, without decoding it.

    Args:
        content (`bytes`): content of the file.
        max_pixels (`int`): maximum number of pixels.

    Returns:
        `int`: number of pixels; `max_pixels` for a file with several pages or frames.

    Raises:
        OSError: if the content is not a photo.
        ValueError: if it has another format, or too many pixels.
    """
    if not content:
        raise OSError("The file is empty; expected an image file.")
    try:
        image = Image.open(BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ValueError(f"The photo is too large; expected at most {max_pixels:,} pixels.") from error
    except Exception as error:  # Pillow's readers raise various errors for damaged files
        raise OSError("The file cannot be read as an image; expected a photo such as JPEG, PNG or TIFF.") from error
    with contextlib.closing(image):
        if image.format not in FORMATS:
            raise ValueError(
                f"The format of the file is {image.format}; expected one of {', '.join(sorted(FORMATS))}."
            )
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"The photo has {image.width:,} x {image.height:,} pixels; expected at most {max_pixels:,} in total."
            )
        return max_pixels if getattr(image, "is_animated", False) else image.width * image.height


__all__ = ["FORMATS", "Engine", "Prepared", "measure_photo"]
