"""Score photos one by one and print the results, for `vip2clip predict` without --output."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import typer

from ..utils.text import counted
from .heatmaps import heatmap_files, save_heatmap
from .options import import_detector, print_json, shows_progress
from .photo_lines import print_entry, print_summary
from .photo_table import PhotoTable, heatmaps_folder, table_settings
from .result_files import ResultFiles, only_writer, write_tables
from .runtimes import open_runtime
from .sources import Photo, Photos, find_photos
from .streams import say, say_error


# For more photos than this, recommend --output.
MANY_PHOTOS = 1000
# For more photos than this, print a summary.
MANY_LINES = 20
HOW_TO_KEEP = (
    "To print all photos, add --all. To keep the results, add --csv FILE, --sort FOLDER (copies of the photos in "
    "good/, defect/ and unsure/) or --output FOLDER (any number of photos)."
)


def predict_photos(
    sources: Sequence[str],
    model: str,
    heatmap: Path | None,
    as_json: bool,
    overwrite: bool,
    recursive: bool,
    options: dict[str, Any],
    files: ResultFiles | None = None,
    show_all: bool = False,
) -> None:
    """
    Score photos and print one line per photo as soon as it is scored, or all results as a JSON list. For more than 20
    photos, print a summary instead.

    Args:
        sources (`Sequence[str]`): see [`find_photos`].
        model (`str`): checkpoint folder or Hub id.
        heatmap (`pathlib.Path`, *optional*): file, or folder for the heatmaps of several photos.
        as_json (`bool`): whether to print a JSON list of records, also for one photo.
        overwrite (`bool`): whether to replace existing heatmaps.
        recursive (`bool`): whether to include subfolders.
        options (`dict[str, Any]`): arguments of [`AnomalyDetectionPipeline.from_pretrained`].
        files ([`ResultFiles`], *optional*): files to write.
        show_all (`bool`, defaults to `False`): whether to print one line per photo for any number of photos.

    Raises:
        OSError: if no photo can be read, a heatmap would replace a photo or another file, or cannot be written.
        ValueError: if there are no photos.
        typer.Exit: with code 3, if some photos could not be read.
    """
    runtime = options.pop("runtime", None)
    if runtime is None:
        import_detector()
    photos, files = find_photos(sources, recursive), files or ResultFiles(overwrite=overwrite)
    with only_writer(files.csv if files.append else None):
        _predict(photos, model, heatmap, as_json, overwrite, options, files, show_all, runtime)


def _predict(
    photos: Photos,
    model: str,
    heatmap: Path | None,
    as_json: bool,
    overwrite: bool,
    options: dict[str, Any],
    files: ResultFiles,
    show_all: bool,
    runtime: str | None,
) -> None:
    files.check([*photos.folders, *(photo.source for photo in photos.photos if photo.is_file)])
    table = PhotoTable(photos, files.csv if files.append else None) if files.wanted else None
    new = photos.photos if table is None else table.new
    targets = {} if heatmap is None else heatmap_files(replace(photos, photos=new), heatmap, overwrite)
    if len(new) > MANY_PHOTOS:
        say_error(f"{len(new)} photos: with --output FOLDER, prediction is batched and an interrupted run resumes.")
    if runtime is None:
        progress, detector = shows_progress(), load_detector(model, options)
    else:
        progress, detector = sys.stderr.isatty(), open_runtime(model, runtime, options)
    if table is not None:
        folder = heatmaps_folder(heatmap, (files.csv, files.xlsx), photos.several)
        table.check(table_settings(detector, model, options, table.root, folder), files.csv)
    entries = []
    summary = len(new) > MANY_LINES and not show_all
    # A progress bar would overwrite lines that are printed to the same terminal.
    bar = progress and photos.several and (as_json or summary or not sys.stdout.isatty())
    try:
        for photo, entry, area in _entries(detector, new, targets, bar):
            entries.append(entry)
            if table is not None:
                table.add(photo, entry, area)
            if not (as_json or summary) and ("error" not in entry or photos.several):
                print_entry(entry)
    except BaseException:
        if files.append and table is not None and entries:  # these rows are right, and need not be computed again
            write_tables(table.predictions(), files.csv, files.xlsx)
        raise
    if as_json:
        print_json(entries)
    elif summary:
        print_summary(entries, _threshold(detector, options))
    tell = say_error if as_json else say
    if table is not None:
        if files.append:
            tell(f"{counted(len(new), 'new photo')}, {counted(table.num_earlier, 'row')} before.")
        files.report(files.write(table.predictions(str(files.csv or files.xlsx or ""))), tell)
    elif summary and not as_json:
        say_error(HOW_TO_KEEP)
    failed = [entry for entry in entries if "error" in entry]
    if entries and len(failed) == len(entries) and not files.append:
        reason = failed[0]["error"]
        if not photos.several:
            raise OSError(reason if failed[0]["image"] in reason else f"{failed[0]['image']!r}: {reason}")
        raise OSError(f"None of the {len(failed)} photos could be read. The first: {reason}")
    if failed:
        raise typer.Exit(3)


def _threshold(detector: Any, options: dict[str, Any]) -> float | None:
    decision = getattr(detector, "decision", None)
    given = options.get("threshold")
    return given[0] if given is not None else getattr(decision, "image_threshold", None)


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
    from ..models.loading import check_dtype
    from ..models.vip2clip import AnomalyDetectionPipeline

    options["dtype"] = check_dtype(options["dtype"])
    detector = AnomalyDetectionPipeline.from_pretrained(model, **options)
    if hasattr(detector, "score_settings"):  # an error of settings is not one of a photo
        detector.score_settings()
    return detector


def _entries(
    detector: Any, photos: list[Photo], targets: dict[str, Path], bar: bool
) -> Iterator[tuple[Photo, dict[str, Any], float | None]]:
    """Each photo with its result, or why it cannot be read, and the fraction of its pixels that are anomalous."""
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
            yield photo, {**entry, "error": str(error) or type(error).__name__}, None
            continue
        found = cast(dict[str, Any], detector(image, heatmap=bool(targets)))
        entry.update(score=found["score"], label=found["label"], anomalous_pixels=int(found["mask"].sum()))
        entry.update((name, found[name]) for name in ("p_value", "regions") if name in found)
        if targets:
            save_heatmap(found["heatmap"], targets[photo.source])
            entry["heatmap"] = str(targets[photo.source])
        yield photo, entry, float(found["mask"].mean())


__all__ = ["load_detector", "predict_photos"]
