"""`vip2clip calibrate`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.extras import require
from .model_argument import check_model
from .options import (
    AnomalousLabel,
    BitDepth,
    Device,
    FalseAlarmRate,
    Json,
    KeepSmallRegions,
    MaskChannel,
    MaskInvert,
    MaskOrientation,
    MaskThreshold,
    Model,
    NormalLabel,
    Page,
    Recursive,
    Seed,
    SkipUnreadable,
    checkpoint_or_bundled,
    import_detector,
    mask_options,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say


def calibrate(
    photos: Annotated[
        str,
        typer.Argument(
            metavar="PHOTOS",
            help="Folder of photos of good parts not used for training or model selection. With --f1 or --recall, a "
            "labelled dataset: a folder, table or Hub id, or a benchmark as NAME=ROOT.",
        ),
    ],
    model: Model = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="New folder for a calibrated copy. Required without --model.",
            show_default="change the checkpoint in place",
        ),
    ] = None,
    false_alarm_rate: FalseAlarmRate = None,
    defects: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos of defects, to measure how many are found.",
            show_default="estimate this with synthetic defects",
        ),
    ] = None,
    f1: Annotated[bool, typer.Option("--f1", help="PHOTOS is a labelled dataset: maximize F1.")] = False,
    recall: Annotated[
        float | None,
        typer.Option(help="PHOTOS is a labelled dataset: fraction of anomalous images and pixels to find."),
    ] = None,
    normal_label: NormalLabel = None,
    anomalous_label: AnomalousLabel = None,
    min_region_area: Annotated[
        float, typer.Option(help="Minimum area of a region, as a fraction of the image.")
    ] = 0.0,
    tile_size: Annotated[
        int | None,
        typer.Option(
            min=0, help="Split larger photos into square tiles of this size, in pixels; 0 for none.",
            show_default="that of the references, else 0",
        ),
    ] = None,
    tile_overlap: Annotated[
        float | None,
        typer.Option(
            help="Overlap of neighbouring tiles, as a fraction of the tile size.",
            show_default="that of the references, else 0.25",
        ),
    ] = None,
    mask_threshold: MaskThreshold = None,
    mask_channel: MaskChannel = None,
    mask_invert: MaskInvert = None,
    mask_orientation: MaskOrientation = None,
    keep_small_regions: KeepSmallRegions = None,
    recursive: Recursive = True,
    bit_depth: BitDepth = None,
    page: Page = None,
    skip_unreadable: SkipUnreadable = False,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Choose thresholds from your own images.

    Writes the thresholds to the checkpoint. From photos of good parts, the false-alarm rate on similar photos is at
    most the rate you choose. With --f1 or --recall, the thresholds maximize F1 or reach the recall on labelled photos.

    Also estimates how many defects are found, and says what would help if many are missed: with synthetic defects, or
    with --defects on your photos of defects.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but some images could not be read or look anomalous.

    \b
    Examples:
      vip2clip calibrate photos/good --output calibrated
      vip2clip calibrate photos/good --model checkpoint --false-alarm-rate 0.01
      vip2clip calibrate photos/good --model checkpoint --defects photos/bad
      vip2clip calibrate photos --model checkpoint --recall 0.95 --output calibrated
    """
    labelled = f1 or recall is not None
    masks = (mask_threshold, mask_channel, mask_invert, mask_orientation, keep_small_regions)
    _check_usage(photos, labelled, f1, recall, false_alarm_rate, defects, normal_label or anomalous_label, masks)
    check_model("calibrate", model, [photos], "" if output is None else " --output FOLDER")
    if labelled:
        require("data", "Calibration with labelled photos", "datasets", "scipy")
    elif min_region_area > 0:
        require("data", "Calibration with --min-region-area", "scipy")
    else:
        import_detector()
    from ..models.vip2clip import AnomalyDetectionPipeline, ReferenceBank
    from ..utils.files import check_new_folder
    from ..utils.outputs import check_output

    if output is not None:
        check_new_folder(output)
        check_output("--output", output, [model or "", photos, photos.rpartition("=")[2], defects or ""])
    if output is None and (model is None or not Path(model).is_dir()):
        what = "The bundled checkpoint" if model is None else f"Checkpoint {model!r} on the Hub"
        raise usage_error(f"{what} is not changed: pass --output with a new folder for a calibrated copy.")
    checkpoint = checkpoint_or_bundled(model)
    progress = shows_progress()
    bank = ReferenceBank.find(checkpoint) if tile_size is None or tile_overlap is None else None
    if tile_size is None:
        tile_size = 0 if bank is None else bank.options.tile_size
    if tile_overlap is None:
        tile_overlap = 0.25 if bank is None else bank.options.tile_overlap
    detector = AnomalyDetectionPipeline.from_pretrained(
        checkpoint, device=device, tile_size=tile_size, tile_overlap=tile_overlap, bit_depth=bit_depth, page=page
    )
    if labelled:
        from ..calibration.from_labels import calibrate_labelled
        from ..data.sources import DataSource

        source = DataSource.parse(
            photos, mask_options=mask_options(*masks), normal_labels=normal_label, anomalous_labels=anomalous_label
        )
        found = calibrate_labelled(
            detector,
            source.load(),
            recall=recall,
            mask_options=source.mask_options,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
        side = None
    else:
        found, side = _from_good_photos(
            detector, photos, recursive, false_alarm_rate, min_region_area, defects, seed, progress
        )
    _write(found, detector, checkpoint, output, side, as_json)
    if found.suspicious or found.unreadable:
        raise typer.Exit(3)


def _check_usage(
    photos: str,
    labelled: bool,
    f1: bool,
    recall: float | None,
    false_alarm_rate: float | None,
    defects: Path | None,
    labels: Any,
    masks: Sequence[Any],
) -> None:
    """Refuse options that do not go together."""
    if f1 and recall is not None:
        raise usage_error("--f1 and --recall exclude each other; pass one of them.")
    if labelled:
        for option, value in (("--false-alarm-rate", false_alarm_rate), ("--defects", defects)):
            if value is not None:
                raise usage_error(f"{option} is for photos of good parts; omit it, or omit --f1 and --recall.")
        return
    if labels:
        raise usage_error("--normal-label and --anomalous-label need a labelled dataset: add --f1 or --recall.")
    if any(value is not None for value in masks):
        raise usage_error("--mask-... options need a labelled dataset with masks: add --f1 or --recall.")
    for option, folder in (("PHOTOS", photos), ("--defects", defects)):
        if folder is not None and not os.path.isdir(folder):
            raise OSError(f"{option} {str(folder)!r} is not a folder; expected a folder of photos.")


def _from_good_photos(
    detector: Any,
    photos: str,
    recursive: bool,
    false_alarm_rate: float | None,
    min_region_area: float,
    defects: Path | None,
    seed: int,
    progress: bool,
) -> tuple[Any, int | None]:
    """Choose thresholds and estimate the detection. Also returns the shorter side of a photo."""
    from ..calibration.detection import estimate_detection
    from ..calibration.from_normal import calibrate as calibrate_normal
    from ..models.vip2clip.image_loading_vip2clip import list_images
    from ..references.defect_photos import list_defects

    listed = list_images(photos, recursive)
    _refuse_labels(photos, recursive)
    bad = None if defects is None else [photo.source for photo in list_defects(defects, recursive)[0]]
    found = calibrate_normal(detector, listed, false_alarm_rate, min_region_area=min_region_area, progress=progress)
    estimate_detection(detector, found, listed, defects=bad, seed=seed)
    readable = next(path for path in listed if path not in found.unreadable)
    return found, min(detector.load(readable).size)


def _refuse_labels(photos: str, recursive: bool) -> None:
    """Refuse a folder with photos that are labelled anomalous: they would raise the threshold."""
    from ..data.loading import index_folder

    if not recursive:
        return
    try:
        labels = [row.label for row in index_folder(photos).rows]
    except (OSError, ValueError):  # no labelled dataset
        return
    if count := labels.count(1):
        raise usage_error(
            f"PHOTOS {photos!r} contains {count} photos that are labelled anomalous. Pass the folder of the photos of "
            "good parts, or add --f1 or --recall to choose thresholds from the labels."
        )


def _write(
    found: Any, detector: Any, checkpoint: str, output: Path | None, photo_side: int | None, as_json: bool
) -> None:
    """Write the calibrated checkpoint and print what was chosen."""
    from ..calibration.detection import advice
    from ..calibration.saving import save_calibration

    if not Path(checkpoint).is_dir():  # a Hub id: save_calibration needs a local folder
        from huggingface_hub import snapshot_download

        checkpoint = snapshot_download(checkpoint)
    folder = save_calibration(found, checkpoint, output)
    origin = found.decision.calibration or {}
    helps = None
    if found.detection is not None:
        helps = advice(
            found.detection,
            detector.model,
            num_good=origin["num_images"] - origin.get("num_anomalous", 0),
            has_references=detector.references is not None,
            tile_size=found.decision.tile_size,
            photo_side=photo_side,
        )
    if as_json:
        summary = found.decision.to_dict()
        summary = {name: value for name, value in summary.items() if name not in ("image_scores", "pixel_scores")}
        summary.update(checkpoint=str(folder), suspicious=found.suspicious, unreadable=found.unreadable)
        summary.update(detection=None if found.detection is None else found.detection.to_dict(), advice=helps)
        print_json(summary)
        return
    say(f"image threshold {found.image_threshold:.6f}, pixel threshold {found.pixel_threshold:.6f}")
    say(f"from {origin['num_images']} images; written to {folder}: decision.json, README.md")
    if found.detection is not None:
        say(found.detection.describe())
    if helps is not None:
        say(helps)


__all__ = ["calibrate"]
