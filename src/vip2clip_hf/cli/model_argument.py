"""Check --model before it is looked up on the Hub: photos, folders of photos, and paths that do not exist."""

import os
import re
from collections.abc import Sequence

from .options import usage_error


# Endings of photos, of files and in URLs.
PHOTO = re.compile(r"\.(jpe?g|png|bmp|tiff?|webp|gif|heic|heif|ppm|pgm)$", re.IGNORECASE)
# Commands that take a checkpoint only.
WITHOUT_PHOTOS = ("app", "export")
_URL = re.compile(r"(https?|file)://|data:", re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|.*\\")


def check_model(command: str, model: str | None, photos: Sequence[str] = (), output: str = "") -> None:
    """
    Find mistakes in `vip2clip COMMAND PHOTOS --model CHECKPOINT`.

    Args:
        command (`str`): name of the command, for the message.
        model (`str`, *optional*): value of --model.
        photos (`Sequence[str]`): PHOTOS.
        output (`str`, defaults to `""`): other options that the command needs, for the message.

    Raises:
        typer.BadParameter: if the model is a photo, a folder of photos, a folder without a checkpoint or a path that
            does not exist, or if PHOTOS is a checkpoint.
    """
    grammar = f"vip2clip {command}{'' if command in WITHOUT_PHOTOS else ' PHOTOS'} --model CHECKPOINT{output}"
    checkpoint = next((one for one in photos if is_checkpoint(one)), None)
    if model is not None:
        kind = _kind(model)
        if kind in ("a photo", "a folder of photos") and checkpoint is not None:
            raise usage_error(
                f"--model {model!r} is {kind} and PHOTOS {checkpoint!r} is a checkpoint: they are swapped. Expected "
                f"{grammar}."
            )
        if kind is not None:
            raise usage_error(
                f"--model {model!r} is {kind}; expected a checkpoint folder or a Hub id such as org/name. Expected "
                f"{grammar}."
            )
    if checkpoint is not None:
        raise usage_error(f"PHOTOS {checkpoint!r} is a checkpoint folder; expected photos. Expected {grammar}.")


def is_checkpoint(path: str) -> bool:
    """
    Whether a path is a checkpoint folder and not a folder of photos.

    Args:
        path (`str`): the path.

    Returns:
        `bool`: True for a folder with `config.json` and without photos.
    """
    return os.path.isfile(os.path.join(path, "config.json")) and not _has_photos(path)


def _kind(model: str) -> str | None:
    """What else than a checkpoint a value of --model is. `None` for a checkpoint or an id that may be on the Hub."""
    if _URL.match(model):
        return "a URL"
    if os.path.isdir(model):
        if os.path.isfile(os.path.join(model, "config.json")):
            return None
        return "a folder of photos" if _has_photos(model) else "a folder without config.json"
    if os.path.isfile(model):
        return "a photo" if PHOTO.search(model) else None
    if PHOTO.search(model):
        return "the name of a photo"
    parts = model.split("/")
    is_path = _WINDOWS_PATH.match(model) or model.startswith(("/", ".", "~")) or len(parts) > 2 or not parts[-1]
    # Of an id on the Hub, the first part is rarely a folder here.
    if is_path or (len(parts) == 2 and os.path.isdir(parts[0])):
        return "a path that does not exist"
    return None


def _has_photos(folder: str) -> bool:
    """Whether a folder, or one of its subfolders, contains a photo. Looks at some files only."""
    names = (name for _, (*_, files) in zip(range(50), os.walk(folder)) for name in files[:10_000])
    return any(map(PHOTO.search, names))


__all__ = ["PHOTO", "check_model", "is_checkpoint"]
