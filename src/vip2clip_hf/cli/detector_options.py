"""Options of the commands that score photos, and the arguments of the pipeline that they set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import usage_error


Threshold = Annotated[
    float | None,
    typer.Option(help="A photo is anomalous if its score is greater than this.", show_default="set by the checkpoint"),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="Number of top patches per layer used for the image score.", show_default="set by the checkpoint"
    ),
]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Refuse photos with more pixels than this.", show_default="89 million")
]


def check_references(references: Path | None, no_references: bool) -> None:
    """
    Check the options for references.

    Args:
        references (`pathlib.Path`, *optional*): value of --references.
        no_references (`bool`): whether --no-references is set.

    Raises:
        OSError: if the folder does not exist.
        typer.BadParameter: if both are set.
    """
    if references is not None and no_references:
        raise usage_error("--references and --no-references exclude each other; pass one of them.")
    if references is not None and not references.is_dir():
        raise OSError(f"--references {str(references)!r} is not a folder; expected a folder of photos of good parts.")


def limit_pixels(max_pixels: int | None) -> None:
    """
    Refuse larger photos in this process, before they are decoded.

    Args:
        max_pixels (`int`, *optional*): number of pixels. `None` keeps the limit of Pillow.
    """
    if max_pixels is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels


def detector_options(
    *, references: Path | None, no_references: bool, threshold: float | None = None, **options: Any
) -> dict[str, Any]:
    """
    Collect the arguments of [`AnomalyDetectionPipeline.from_pretrained`].

    Args:
        references, no_references: see [`check_references`]. Without both, the references are those of the checkpoint.
        threshold (`float`, *optional*): threshold of images and pixels.
        options: further arguments.

    Returns:
        `dict[str, Any]`: the arguments.
    """
    if references is not None or no_references:
        options["references"] = None if references is None else str(references)
    if threshold is not None:
        options["threshold"] = (threshold, threshold)
    return options


__all__ = ["MaxPixels", "Threshold", "TopK", "check_references", "detector_options", "limit_pixels"]
