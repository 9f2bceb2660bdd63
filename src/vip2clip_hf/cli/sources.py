"""Photos named on the command line: files, folders, patterns, URLs and lists."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .options import expand_user, usage_error
from .streams import read_paths, say_error


# Passed on unchanged.
_URL = re.compile(r"(https?|file)://|data:", re.IGNORECASE)
STDIN = "-"


@dataclass(frozen=True)
class Photo:
    """
    Photo to score.

    Args:
        source (`str`): path or URL.
        name (`str`): path below the folder it was found in, or its file name; names its heatmap.
        error (`str`, *optional*): why it cannot be read, if that is known.
    """

    source: str
    name: str
    error: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file and not a URL."""
        return not is_url(self.source)


@dataclass(frozen=True)
class Photos:
    """
    All photos of a command line.

    Args:
        photos (`list[Photo]`): the photos, in the order of the arguments, without repetitions.
        folders (`list[str]`): folders among the arguments.
        several (`bool`): whether the arguments can stand for several photos.
    """

    photos: list[Photo]
    folders: list[str]
    several: bool


def is_url(text: str) -> bool:
    """
    Whether an argument is a URL.

    Args:
        text (`str`): the argument.

    Returns:
        `bool`: True for `http`, `https` and `file` URLs and for data URIs.
    """
    return _URL.match(text) is not None


def expand_sources(sources: Sequence[str]) -> tuple[list[str], bool]:
    """
    Read the list on the standard input, and expand patterns that the shell has not expanded.

    Args:
        sources (`Sequence[str]`): arguments of the command line.

    Returns:
        `tuple[list[str], bool]`: paths and URLs, and whether there was a list or a pattern.

    Raises:
        OSError: if the list is empty.
        typer.BadParameter: if `-` is given twice.
    """
    if list(sources).count(STDIN) > 1:
        raise usage_error("PHOTOS contains - twice; the standard input can be read once.")
    found: list[str] = []
    expanded = False
    for source in sources:
        if source == STDIN:
            paths = [expand_user(path) for path in read_paths()]
            if not paths:
                raise OSError("The standard input contains no paths; expected one per line, or separated by NUL.")
            found += paths
            expanded = True
        elif not is_url(source) and glob.has_magic(source) and not os.path.lexists(source):
            matches = sorted(glob.glob(source, recursive=True))
            found += matches or [source]
            expanded = expanded or bool(matches)
        else:
            found.append(source)
    return found, expanded


def find_photos(sources: Sequence[str], recursive: bool = True) -> Photos:
    """
    List the photos of a command line. A photo that is named twice is listed once, with a note.

    Args:
        sources (`Sequence[str]`): paths of photos and folders, patterns, URLs, and `-` for a list of paths on the
            standard input.
        recursive (`bool`, defaults to `True`): whether to include the subfolders of folders.

    Returns:
        [`Photos`]: the photos. A path that does not exist is listed with its error, if there are other sources.

    Raises:
        OSError: if nothing exists, or a folder cannot be read.
        ValueError: if the only source is a folder without images.
        typer.BadParameter: if `-` is given twice.
    """
    from ..models.vip2clip.image_loading_vip2clip import list_images

    expanded, several = expand_sources(sources)
    several = several or len(expanded) > 1
    photos: list[Photo] = []
    folders: list[str] = []
    missing: list[str] = []
    for source in expanded:
        if is_url(source):
            name = "photo" if source[:5].lower() == "data:" else unquote(urlsplit(source).path).rpartition("/")[2]
            photos.append(Photo(source, name or "photo"))
        elif os.path.isdir(source):
            folders.append(source)
            try:
                paths = list_images(source, recursive=recursive)
            except (OSError, ValueError) as error:
                if not several:
                    raise
                photos.append(Photo(source, os.path.basename(os.path.abspath(source)), str(error)))
                continue
            photos += [Photo(path, os.path.relpath(path, source)) for path in paths]
        elif not os.path.lexists(source):
            missing.append(source)
            reason = f"{source!r} not found; expected a photo or a folder of photos."
            photos.append(Photo(source, os.path.basename(source), reason))
        else:
            photos.append(Photo(source, os.path.basename(source)))
    if len(missing) == len(photos):
        more = f" {len(missing) - 1} more paths are not found." if len(missing) > 1 else ""
        raise OSError(f"{photos[0].error}{more}")
    unique = {
        photo.source if not photo.is_file else os.path.abspath(photo.source): photo for photo in reversed(photos)
    }
    kept = list(reversed(unique.values()))
    if len(kept) < len(photos):
        say_error(f"{len(photos) - len(kept)} photos are named twice and scored once.")
    return Photos(kept, folders, several or bool(folders))


def heatmap_names(photos: Photos) -> dict[str, Path]:
    """
    Choose the path of each heatmap below the folder of heatmaps.

    Args:
        photos ([`Photos`]): the photos.

    Returns:
        `dict[str, Path]`: relative path by source.

    Raises:
        OSError: if two photos would have the same heatmap.
    """
    names: dict[str, Path] = {}
    taken: dict[str, str] = {}
    for photo in photos.photos:
        name = Path(f"{photo.name}.png")
        other = taken.setdefault(str(name).casefold(), photo.source)  # some file systems ignore case
        if other != photo.source:
            raise OSError(
                f"{other!r} and {photo.source!r} have the same name, so one heatmap would replace the other; predict "
                "them one after the other, or pass the folder that contains both."
            )
        names[photo.source] = name
    return names


__all__ = ["Photo", "Photos", "expand_sources", "find_photos", "heatmap_names", "is_url"]
