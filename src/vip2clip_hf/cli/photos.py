"""Score photos one by one and print the results, for `vip2clip predict` without --output."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import typer

from .options import import_detector, print_json, shows_progress
from .runtimes import open_runtime
from .sources import Photo, Photos, find_photos, heatmap_names
from .streams import say, say_error


# For more photos than this, recommend --output.
MANY_PHOTOS = 1000
# Formats of a heatmap, by the ending of its name.
HEATMAP_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip


def predict_photos(
    sources: Sequence[str],
    model: str,
    heatmap: Path | None,
    as_json: bool,
    overwrite: bool,
    recursive: bool,
    options: dict[str, Any],
) -> None:
    """
    Score photos and print one line per photo as soon as it is scored, or all results as a JSON list.

    Args:
        sources (`Sequence[str]`): see [`find_photos`].
        model (`str`): checkpoint folder or Hub id.
        heatmap (`pathlib.Path`, *optional*): file, or folder for the heatmaps of several photos.
        as_json (`bool`): whether to print a JSON list of records, also for one photo.
        overwrite (`bool`): whether to replace existing heatmaps.
        recursive (`bool`): whether to include subfolders.
        options (`dict[str, Any]`): arguments of [`AnomalyDetectionPipeline.from_pretrained`].

    Raises:
        OSError: if no photo can be read, a heatmap would replace a photo or another file, or cannot be written.
        ValueError: if there are no photos.
        typer.Exit: with code 3, if some photos could not be read.
    """
    photos = find_photos(sources, recursive)
    targets = {} if heatmap is None else heatmap_files(photos, heatmap, overwrite)
    if len(photos.photos) > MANY_PHOTOS:
        say_error(
            f"{len(photos.photos)} photos: with --output FOLDER, prediction is batched and an interrupted run resumes."
        )
    runtime = options.pop("runtime", None)
    if runtime is None:
        progress, detector = shows_progress(), load_detector(model, options)
    else:
        progress, detector = sys.stderr.isatty(), open_runtime(model, runtime, options)
    entries = []
    # A progress bar would overwrite lines that are printed to the same terminal.
    bar = progress and photos.several and (as_json or not sys.stdout.isatty())
    for entry in _entries(detector, photos.photos, targets, bar):
        entries.append(entry)
        if not as_json and ("error" not in entry or photos.several):
            print_entry(entry)
    if as_json:
        print_json(entries)
    failed = [entry for entry in entries if "error" in entry]
    if len(failed) == len(entries):
        reason = failed[0]["error"]
        if not photos.several:
            raise OSError(reason if failed[0]["image"] in reason else f"{failed[0]['image']!r}: {reason}")
        raise OSError(f"None of the {len(failed)} photos could be read. The first: {reason}")
    if failed:
        raise typer.Exit(3)


def load_detector(model: str, options: dict[str, Any]) -> Any:
    """
    Load the pipeline and check its settings before the first photo.

    Args:
        model (`str`): checkpoint folder or Hub id.
        options (`dict[str, Any]`): arguments of [`AnomalyDetectionPipeline.from_pretrained`].

    Returns:
        [`AnomalyDetectionPipeline`]: the pipeline.

    Raises:
        OSError: if the checkpoint is not found.
        ValueError: if a setting is not allowed.
    """
    import_detector()
    from ..models.loading import check_dtype
    from ..models.vip2clip import AnomalyDetectionPipeline

    options["dtype"] = check_dtype(options["dtype"])
    detector = AnomalyDetectionPipeline.from_pretrained(model, **options)
    if hasattr(detector, "score_settings"):  # an error of settings is not one of a photo
        detector.score_settings()
    return detector


def _entries(detector: Any, photos: list[Photo], targets: dict[str, Path], bar: bool) -> Iterator[dict[str, Any]]:
    """The result of each photo, or why it cannot be read."""
    from ..models.vip2clip.image_loading_vip2clip import load_image
    from ..utils.extras import is_installed

    shown: Iterable[Photo] = photos
    if bar and is_installed("tqdm"):
        from tqdm.auto import tqdm

        shown = tqdm(photos)
    load = getattr(detector, "load", load_image)  # with the options of the pipeline for reading
    for photo in shown:
        entry: dict[str, Any] = {"image": photo.source}
        try:
            if photo.error is not None:
                raise OSError(photo.error)
            image = load(photo.source)
        except (OSError, ValueError, MemoryError) as error:
            yield {**entry, "error": str(error) or type(error).__name__}
            continue
        found = cast(dict[str, Any], detector(image, heatmap=bool(targets)))
        entry.update(score=found["score"], label=found["label"], anomalous_pixels=int(found["mask"].sum()))
        entry.update((name, found[name]) for name in ("p_value", "regions") if name in found)
        if targets:
            save_heatmap(found["heatmap"], targets[photo.source])
            entry["heatmap"] = str(targets[photo.source])
        yield entry


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


def print_entry(entry: dict[str, Any]) -> None:
    """
    Print the result of a photo.

    Args:
        entry (`dict[str, Any]`): record of the JSON list.
    """
    from ..utils.text import shown

    text = shown(entry["error"]) if "error" in entry else f"{entry['score']:.3f} {entry['label']}"
    if entry.get("p_value") is not None:
        text += f", p-value {entry['p_value']:.3g}"
    lines = [f"{shown(entry['image'])}: {text}"]
    for region in entry.get("regions", ()):
        left, top, right, bottom = region["box"]
        lines.append(
            f"  {left}, {top} to {right}, {bottom}: {region['area']} pixels, "
            f"mean {region['mean_score']:.3f}, peak {region['peak_score']:.3f}"
        )
    say("\n".join(lines))


__all__ = ["HEATMAP_FORMATS", "heatmap_files", "predict_photos", "print_entry", "save_heatmap"]
