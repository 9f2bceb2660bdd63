"""Files of the heatmaps of `vip2clip predict --heatmap`."""

import os
from pathlib import Path
from typing import Any

from .sources import Photos, heatmap_names


# Formats of a heatmap, by the ending of its name.
HEATMAP_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip


def heatmap_files(photos: Photos, heatmap: Path, overwrite: bool) -> dict[str, Path]:
    """
    Choose the file of each heatmap. No photo and, without `overwrite`, no other file is replaced.

    Args:
        photos ([`Photos`]): the photos.
        heatmap (`pathlib.Path`): file, or folder for the heatmaps of several photos.
        overwrite (`bool`): whether to replace existing heatmaps.

    Returns:
        `dict[str, Path]`: file by source.

    Raises:
        OSError: if a heatmap would replace a photo or another file, or be read as a photo the next time.
    """
    from ..utils.outputs import is_inside

    several = photos.several
    if not several and heatmap.is_dir():
        raise OSError(f"{str(heatmap)!r} is a folder; expected a file for the heatmap of one photo.")
    if several and heatmap.is_file():
        raise OSError(f"{str(heatmap)!r} is a file; expected a folder for the heatmaps of several photos.")
    parents = [os.path.dirname(photo.source) or "." for photo in photos.photos if photo.is_file] if several else []
    inside = any(is_inside(heatmap, folder) for folder in photos.folders)
    if inside or any(
        heatmap.exists() and os.path.samefile(heatmap, one) for one in set(parents) if os.path.exists(one)
    ):
        raise OSError(
            f"--heatmap {str(heatmap)!r} is inside the folder of the photos, where the heatmaps would be read as "
            "photos the next time; expected another folder."
        )
    if several:
        targets = {source: heatmap / name for source, name in heatmap_names(photos).items()}
    else:
        targets = {photos.photos[0].source: heatmap}
        if heatmap.suffix.lower() not in HEATMAP_FORMATS:
            raise OSError(
                f"{str(heatmap)!r} has an unknown format; expected a name with {', '.join(HEATMAP_FORMATS)}."
            )
    existing = [file for file in targets.values() if os.path.lexists(file)]
    paths = [photo.source for photo in photos.photos if photo.is_file and os.path.exists(photo.source)]
    inputs = {(found.st_dev, found.st_ino) for found in map(os.stat, paths)}
    for file in existing:
        if os.path.isdir(file):
            raise OSError(f"{str(file)!r} is a folder; expected a file for the heatmap of one photo.")
        if os.path.exists(file) and (os.stat(file).st_dev, os.stat(file).st_ino) in inputs:
            raise OSError(f"The heatmap {str(file)!r} would replace a photo; expected another file.")
    if existing and not overwrite:
        raise OSError(
            f"{str(existing[0])!r} already exists{f', and {len(existing) - 1} more' if len(existing) > 1 else ''}; "
            "choose another path, or replace existing heatmaps with --overwrite."
        )
    return targets


def save_heatmap(picture: Any, target: Path) -> None:
    """
    Write a heatmap completely or not at all.

    Args:
        picture (`PIL.Image.Image`): the heatmap.
        target (`pathlib.Path`): file to write; its ending determines the format.

    Raises:
        OSError: if the file cannot be written.
    """
    from io import BytesIO

    from ..utils.files import write_atomically

    content = BytesIO()
    picture.save(content, format=HEATMAP_FORMATS[target.suffix.lower()])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content.getvalue())
    except OSError as error:
        raise OSError(f"The heatmap {str(target)!r} could not be written: {error.strerror or error}.") from error


__all__ = ["HEATMAP_FORMATS", "heatmap_files", "save_heatmap"]
