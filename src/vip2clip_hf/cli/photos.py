"""Score photos one by one and print the results, for `vip2clip predict` without --output."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import typer

from .heatmaps import heatmap_files, save_heatmap
from .options import print_json, shows_progress
from .photo_lines import print_entry
from .sources import Photo, find_photos
from .streams import say_error


# For more photos than this, recommend --output.
MANY_PHOTOS = 1000


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
    progress = shows_progress()
    detector = load_detector(model, options)
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
        ImportError: if the checkpoint needs a package that is not installed.
        OSError: if the checkpoint is not found.
        ValueError: if a setting is not allowed.
    """
    from ..models.loading import check_dtype
    from ..models.vip2clip import AnomalyDetectionPipeline
    from ..utils.extras import require

    options["dtype"] = check_dtype(options["dtype"])
    detector = AnomalyDetectionPipeline.from_pretrained(model, **options)
    if hasattr(detector, "score_settings"):  # an error of settings is not one of a photo
        detector.score_settings()
    if getattr(getattr(detector, "decision", None), "min_region_area", 0):
        require("data", "A checkpoint with a minimum area of regions", "scipy")
    return detector


def _entries(detector: Any, photos: list[Photo], targets: dict[str, Path], bar: bool) -> Iterator[dict[str, Any]]:
    """The result of each photo, or why it cannot be read."""
    from tqdm.auto import tqdm

    from ..models.vip2clip.image_loading_vip2clip import load_image

    load = getattr(detector, "load", load_image)  # with the options of the pipeline for reading
    for photo in tqdm(photos, disable=not bar):
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


__all__ = ["load_detector", "predict_photos"]
