"""What the server needs of a model: the steps of a prediction for single photos, so that photos share a batch."""

import contextlib
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ..models.vip2clip.arguments_vip2clip import label_names, threshold_pair
from ..models.vip2clip.heif_vip2clip import check_heif
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
        inputs (`dict[str, Any]`): what the engine keeps of it.
        notices (`list[str]`): what was converted or guessed when the photo was read.
    """

    inputs: dict[str, Any]
    notices: list[str] = field(default_factory=list)


class Engine(Protocol):
    """Steps of a prediction: `prepare` and `finish` for one photo, in any thread, and `forward` for a batch."""

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

    def forward(self, photos: Sequence[Prepared]) -> list[dict[str, Any]]:
        """
        Run the model on a batch.

        Args:
            photos (`Sequence[Prepared]`): the photos.

        Returns:
            `list[dict[str, Any]]`: for each photo, the argument of `finish`, on the CPU.
        """

    def finish(self, outputs: dict[str, Any], regions: bool) -> "AnomalyDetectionResult":
        """
        Convert the outputs of the model for one photo to the result of the pipeline.

        Args:
            outputs (`dict[str, Any]`): an item of the result of `forward`.
            regions (`bool`): whether to list the regions of the mask.

        Returns:
            [`AnomalyDetectionResult`]: the result.
        """

    def describe(self) -> dict[str, Any]:
        """
        Describe the model and its decision.

        Returns:
            `dict[str, Any]`: `image_size`, `labels`, `image_threshold`, `pixel_threshold`, `calibrated`, `references`
            (number of photos) and `tile_size`.
        """


def description(detector: Any, threshold: Any, calibrated: bool, references: Sized | None) -> dict[str, Any]:
    """
    Describe a detector, see [`Engine.describe`].

    Args:
        detector ([`AnomalyDetectionPipeline`] or [`OnnxDetector`]): the detector.
        threshold (`float` or `tuple`, *optional*): value of its call argument.
        calibrated (`bool`): whether the calibration belongs to its scores.
        references (`Sized`, *optional*): references in use.

    Returns:
        `dict[str, Any]`: the description.
    """
    config, decision = detector.model.config, detector.decision
    image_threshold, pixel_threshold = threshold_pair(threshold, (decision.image_threshold, decision.pixel_threshold))
    return {
        "image_size": config.image_size,
        "labels": list(label_names(config.id2label)),
        "image_threshold": image_threshold,
        "pixel_threshold": pixel_threshold,
        "calibrated": calibrated,
        "references": 0 if references is None else len(references),
        "tile_size": detector.score_settings()["tile_size"],
    }


def warm_up(engine: Engine) -> None:
    """
    Run the model once, so that the first request is not slower than others.

    Args:
        engine ([`Engine`]): the engine.
    """
    side = engine.describe()["image_size"]
    content = png_bytes(Image.new("RGB", (side, side), (128, 128, 128)))
    engine.finish(engine.forward([engine.prepare(content, "warm-up", heatmap=True)])[0], regions=True)


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
    check_heif(content[:64], "The file")
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


__all__ = ["FORMATS", "Engine", "Prepared", "description", "measure_photo", "warm_up"]
