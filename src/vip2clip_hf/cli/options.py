"""Shared options and helpers of the commands."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.lazy_registration import after_import
from ..utils.settings import read_settings
from .streams import say_error


def one_of(option: str, *allowed: str) -> Callable[[str], str]:
    """
    Create a callback that checks the value of an option.

    Args:
        option (`str`): name of the option, for the message.
        allowed (`str`): allowed values.

    Returns:
        `Callable`: the callback. It raises `typer.BadParameter`, which ends the command with exit code 2.
    """

    def check(value: str) -> str:
        if value not in allowed:
            raise usage_error(f"{option} is {value!r}; expected {', '.join(allowed)}.")
        return value

    return check


def usage_error(message: str) -> typer.BadParameter:
    """
    Create an error for wrong command line arguments. Raising it ends the command with exit code 2.

    Args:
        message (`str`): the message.

    Returns:
        `typer.BadParameter`: the error.
    """
    return typer.BadParameter(message)


Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or Hub id.", show_default="small bundled checkpoint")
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="CLIP backbone of an adapters-only checkpoint: folder or Hub id.", show_default="set by the checkpoint"
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Device to run on: cpu, cuda, mps, ...", show_default="first accelerator")
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision: float32, bfloat16 or float16.", callback=one_of("--dtype", "float32", "bfloat16", "float16")
    ),
]
MaskThreshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Mask values greater than this are anomalous. Use 127 for JPEG masks.",
        show_default="that of the benchmark or checkpoint, 0",
    ),
]
MaskChannel = Annotated[
    str | None,
    typer.Option(
        help="Where the values of masks come from: auto, luminance, any, red, green, blue, alpha or index.",
        show_default="auto",
    ),
]
MaskInvert = Annotated[
    bool | None,
    typer.Option(
        "--mask-invert/--no-mask-invert",
        help="Defects are dark on a bright background in the masks.",
        show_default="no-mask-invert",
    ),
]
MaskOrientation = Annotated[
    str | None,
    typer.Option(
        help="EXIF orientation of masks without one of their own: auto, image (that of the image) or own (none).",
        show_default="auto",
    ),
]
KeepSmallRegions = Annotated[
    bool | None,
    typer.Option(
        "--keep-small-regions/--lose-small-regions",
        help="Keep defects that vanish at the size of the model, with at least one pixel.",
        show_default="keep-small-regions",
    ),
]
NormalLabel = Annotated[
    list[str] | None,
    typer.Option(help="Name of a folder, or label in a table, that means normal. Repeatable.", show_default=False),
]
AnomalousLabel = Annotated[
    list[str] | None,
    typer.Option(help="Name of a folder, or label in a table, that means anomalous. Repeatable.", show_default=False),
]
BitDepth = Annotated[
    int | None,
    typer.Option(
        min=8, max=16, help="Bits per value of photos that store more than 8, such as 12.",
        show_default="detected; unclear photos are errors",
    ),
]  # fmt: skip
Page = Annotated[
    int | None,
    typer.Option(min=1, help="Page or frame of photos with several.", show_default="several are an error"),
]
TileSize = Annotated[
    int | None,
    typer.Option(
        min=0, help="Split larger photos into square tiles of this size, in pixels; 0 for none.",
        show_default="set by the checkpoint",
    ),
]  # fmt: skip
TileOverlap = Annotated[
    float | None,
    typer.Option(help="Overlap of neighbouring tiles, as a fraction of the tile size.", show_default="0.25"),
]
References = Annotated[
    Path | None,
    typer.Option(
        help="Folder of photos of good parts to compare with, including its subfolders.",
        show_default="references of the checkpoint, if any",
    ),
]
NoReferences = Annotated[bool, typer.Option("--no-references", help="Do not use the references of the checkpoint.")]
FalseAlarmRate = Annotated[
    float | None,
    typer.Option(
        help="Maximum fraction of photos of good parts classified as anomalous.",
        show_default="0.05, or more for fewer than 19 photos",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of synthetic defects and of cross-validation.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images and masks that cannot be read.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Recursive = Annotated[bool, typer.Option("--recursive/--no-recursive", help="Include the subfolders of a folder.")]


ClassName = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[CATEGORY=]NAME",
        help="Name in the prompts of methods that use one: of all categories, or of one. Repeatable.",
        show_default="name of the category",
    ),
]


def class_names(texts: list[str] | None) -> str | dict[str, str] | None:
    """
    Parse the names of classes in prompts.

    Args:
        texts (`list[str]`, *optional*): arguments of the form `NAME` or `CATEGORY=NAME`.

    Returns:
        `str` or `dict[str, str]`, *optional*: one name for all categories, or names by category.

    Raises:
        typer.BadParameter: if a name is empty, or there are several names for all categories.
    """
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        if not texts[0].strip():
            raise usage_error(f"--class-name is {texts[0]!r}; expected a name.")
        return texts[0]
    pairs = [parse_pair(text, "--class-name", "CATEGORY=NAME", "'pcb1=circuit board'") for text in texts]
    if empty := [category for category, name in pairs if not name.strip()]:
        raise usage_error(f"--class-name is '{empty[0]}='; expected CATEGORY=NAME, such as 'pcb1=circuit board'.")
    return dict(pairs)


def mask_options(
    threshold: float | None,
    channel: str | None,
    invert: bool | None,
    orientation: str | None,
    keep_small_regions: bool | None = None,
) -> Any:
    """
    Combine the options for masks.

    Args:
        threshold, channel, invert, orientation, keep_small_regions (*optional*): see [`MaskOptions`].

    Returns:
        [`MaskOptions`]: the options.

    Raises:
        typer.BadParameter: if a value is not allowed.
    """
    from ..models.vip2clip.mask_options_vip2clip import MaskOptions

    try:
        return MaskOptions(threshold, channel, invert, orientation, keep_small_regions)
    except ValueError as error:
        raise usage_error(f"--{str(error).replace('_', '-', 1)}") from error


def parse_pair(text: str, option: str, form: str, example: str) -> tuple[str, str]:
    """
    Split an argument of the form `NAME=VALUE`.

    Args:
        text (`str`): the argument.
        option, form, example (`str`): option name, expected form and an example, for the error message.

    Returns:
        `tuple[str, str]`: name and value.

    Raises:
        typer.BadParameter: if there is no name or no "=".
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise usage_error(f"{option} is {text!r}; expected {form}, such as {example}.")
    return name.strip(), value


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """
    Parse settings such as `["image_size=518", "feature_layers=[6, 12]"]`.

    Args:
        settings (`list[str]`): arguments of the form `NAME=VALUE`. A value is parsed as JSON, or is kept as text.

    Returns:
        `dict[str, Any]`: value by name.

    Raises:
        typer.BadParameter: if a setting has no name or no "=".
    """
    try:
        return read_settings(settings)
    except ValueError as error:
        raise usage_error(str(error)) from error


def expand_user(text: str) -> str:
    """
    Replace `~` at the start of a path, where a shell does not: in quotes, after `NAME=` and after `--option=`.

    Args:
        text (`str`): argument of the command line, or a path.

    Returns:
        `str`: the argument with the home folder. A path that exists is not changed.
    """
    start = text.find("=") + 1 if re.match(r"(--)?[\w.-]+=~", text) else 0
    path = text[start:]
    if not path.startswith("~") or os.path.lexists(path) or os.path.lexists(text):
        return text
    return text[:start] + os.path.expanduser(path)


def checkpoint_or_bundled(model: str | None) -> str:
    """
    Use the bundled checkpoint if no checkpoint is set. The first time, print a note to stderr.

    Args:
        model (`str`, *optional*): checkpoint folder or Hub id.

    Returns:
        `str`: `model`, or the folder of the bundled checkpoint.
    """
    if model is not None:
        return model
    from ..checkpoints.bundled import bundled_checkpoint

    folder = bundled_checkpoint()
    if os.environ.get("RANK", "0") == "0" and _is_first(f"notice-{folder.name}"):
        say_error(
            "Using the small bundled checkpoint. It needs photos of good parts as references (vip2clip adapt); "
            "without them, it is for trying things out. A ViT-L/14 checkpoint is better: --model, see "
            "docs/quickstart.md. This note is shown once."
        )
    return str(folder)


def _is_first(name: str) -> bool:
    """Whether something happens for the first time on this machine. Always, if this cannot be remembered."""
    from ..utils.cache import own_cache

    file = own_cache() / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x"):
            return True
    except FileExistsError:
        return not file.is_file()
    except OSError:
        return True


def import_detector() -> None:
    """Import what scores photos, before other modules import transformers with all that it can use."""
    from ..utils.light_imports import import_lightly

    import_lightly("vip2clip_hf.models.registration", "transformers.models.clip.modeling_clip")


def shows_progress() -> bool:
    """
    Check whether to show progress bars. If not, also disable those of transformers, which would clutter a log.

    Returns:
        `bool`: True if stderr is a terminal.
    """
    if sys.stderr.isatty():
        return True
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when datasets is imported
    # Commands without a model do not import transformers.
    name = "transformers.utils.logging"
    if name in sys.modules:
        _disable_progress_bar(name)
    else:
        after_import([name], _disable_progress_bar)
    return False


def _disable_progress_bar(name: str) -> None:
    sys.modules[name].disable_progress_bar()


def print_json(content: Any) -> None:
    """
    Print a result to stdout as JSON in UTF-8, regardless of the encoding of the console.

    Args:
        content: JSON-serializable content without NaN and infinite numbers, see [`without_nan`].

    Raises:
        ValueError: if a number is not finite, which JSON cannot represent.
    """
    from ..utils.serialization import to_json
    from .streams import say_bytes

    say_bytes(to_json(content).encode("utf-8"))


__all__ = [
    "AnomalousLabel",
    "Backbone",
    "BitDepth",
    "ClassName",
    "Device",
    "Dtype",
    "FalseAlarmRate",
    "Json",
    "KeepSmallRegions",
    "MaskChannel",
    "MaskInvert",
    "MaskOrientation",
    "MaskThreshold",
    "Model",
    "NoReferences",
    "NormalLabel",
    "Page",
    "Recursive",
    "References",
    "Seed",
    "SkipUnreadable",
    "TileOverlap",
    "TileSize",
    "checkpoint_or_bundled",
    "class_names",
    "expand_user",
    "import_detector",
    "mask_options",
    "one_of",
    "parse_pair",
    "parse_settings",
    "print_json",
    "shows_progress",
    "usage_error",
]
