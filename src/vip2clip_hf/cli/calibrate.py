"""`vip2clip calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..utils.extras import require
from .options import (
    AnomalousLabel,
    BitDepth,
    Device,
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
    SkipUnreadable,
    checkpoint_or_bundled,
    mask_options,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say


def calibrate(
    model: Model = None,
    normal: Annotated[
        Path | None, typer.Option(help="Folder of normal images not used for training or model selection.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(metavar="[NAME=]ROOT", help="Instead of --normal: a labelled dataset, to maximize F1."),
    ] = None,
    normal_label: NormalLabel = None,
    anomalous_label: AnomalousLabel = None,
    false_alarm_rate: Annotated[
        float, typer.Option(help="With --normal: maximum fraction of normal images classified as anomalous.")
    ] = 0.01,
    recall: Annotated[
        float | None,
        typer.Option(help="With --labelled: fraction of anomalous images and pixels to find."),
    ] = None,
    min_region_area: Annotated[
        float, typer.Option(help="With --normal: minimum area of a region, as a fraction of the image.")
    ] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option(help="New folder for a calibrated copy.", show_default="change the checkpoint in place"),
    ] = None,
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
    as_json: Json = False,
) -> None:  # fmt: skip
    """Choose thresholds from your own images.

    Writes the thresholds to the checkpoint. With --normal, the false-alarm rate on similar normal images is at most
    the rate you choose. With --labelled, the thresholds maximize F1 or reach the recall you choose.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but some images could not be read or look anomalous.

    \b
    Examples:
      vip2clip calibrate --model checkpoint --normal photos/good --false-alarm-rate 0.01
      vip2clip calibrate --model checkpoint --labelled photos --recall 0.95 --output calibrated
    """
    if labelled is not None:
        require("data", "Calibration with --labelled", "datasets", "scipy")
    elif min_region_area > 0:
        require("data", "Calibration with --min-region-area", "scipy")
    from ..calibration.from_labels import calibrate_labelled
    from ..calibration.from_normal import calibrate as calibrate_normal
    from ..calibration.saving import save_calibration
    from ..models.vip2clip import AnomalyDetectionPipeline, ReferenceBank
    from ..models.vip2clip.image_loading_vip2clip import list_images
    from ..utils.files import check_new_folder
    from ..utils.outputs import check_output

    if (normal is None) == (labelled is None):
        raise usage_error("Pass either --normal (a folder of normal images) or --labelled (a labelled dataset).")
    if normal is not None and not normal.is_dir():
        raise OSError(f"{str(normal)!r} is not a folder; expected a folder of normal images.")
    if normal is not None and (normal_label or anomalous_label):
        raise usage_error("--normal-label and --anomalous-label can only be used with --labelled.")
    if normal is not None and recall is not None:
        raise usage_error("--recall needs anomalous images: pass --labelled instead of --normal.")
    options = mask_options(mask_threshold, mask_channel, mask_invert, mask_orientation, keep_small_regions)
    if normal is not None and any(value is not None for value in options.columns().values()):
        raise usage_error("--mask-... options need masks: pass --labelled instead of --normal.")
    if output is not None:
        check_new_folder(output)
        check_output("--output", output, [model or "", normal or "", (labelled or "").rpartition("=")[2]])
    checkpoint = checkpoint_or_bundled(model)
    if output is None and (model is None or not Path(checkpoint).is_dir()):
        what = "The bundled checkpoint" if model is None else f"Checkpoint {model!r} on the Hub"
        raise usage_error(f"{what} is not changed: pass --output with a new folder for a calibrated copy.")
    progress = shows_progress()
    bank = ReferenceBank.find(checkpoint) if tile_size is None or tile_overlap is None else None
    if tile_size is None:
        tile_size = 0 if bank is None else bank.options.tile_size
    if tile_overlap is None:
        tile_overlap = 0.25 if bank is None else bank.options.tile_overlap
    detector = AnomalyDetectionPipeline.from_pretrained(
        checkpoint, device=device, tile_size=tile_size, tile_overlap=tile_overlap, bit_depth=bit_depth, page=page
    )
    if normal is not None:
        found = calibrate_normal(
            detector,
            list_images(normal, recursive),
            false_alarm_rate,
            min_region_area=min_region_area,
            progress=progress,
        )
    elif labelled is not None:
        from ..data.sources import DataSource

        source = DataSource.parse(
            labelled, mask_options=options, normal_labels=normal_label, anomalous_labels=anomalous_label
        )
        found = calibrate_labelled(
            detector,
            source.load(),
            recall=recall,
            mask_options=source.mask_options,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
    if not Path(checkpoint).is_dir():  # a Hub id: save_calibration needs a local folder
        from huggingface_hub import snapshot_download

        checkpoint = snapshot_download(checkpoint)
    folder = save_calibration(found, checkpoint, output)
    if as_json:
        summary = found.decision.to_dict()
        summary = {name: value for name, value in summary.items() if name not in ("image_scores", "pixel_scores")}
        summary.update(checkpoint=str(folder), suspicious=found.suspicious, unreadable=found.unreadable)
        print_json(summary)
    else:
        count = (found.decision.calibration or {})["num_images"]
        say(f"image threshold {found.image_threshold:.6f}, pixel threshold {found.pixel_threshold:.6f}")
        say(f"from {count} images; written to {folder}: decision.json, README.md")
    if found.suspicious or found.unreadable:
        raise typer.Exit(3)


__all__ = ["calibrate"]
