"""`vip2clip adapt`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .model_argument import check_model
from .options import (
    BitDepth,
    Device,
    FalseAlarmRate,
    Json,
    Model,
    Page,
    Recursive,
    Seed,
    TileOverlap,
    TileSize,
    checkpoint_or_bundled,
    import_detector,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say


def adapt(
    photos: Annotated[
        Path | None,
        typer.Argument(
            metavar="PHOTOS", help="Folder of photos of good parts. Optional with --update.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="New folder for the adapted checkpoint and its report.", show_default=False)
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(help="Instead of --output: adapted checkpoint to add the photos to.", show_default=False),
    ] = None,
    model: Model = None,
    false_alarm_rate: FalseAlarmRate = None,
    defects: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos of defects, to choose the image threshold and the weight of the zero-shot score. "
            "Masks in it choose the pixel threshold.",
            show_default=False,
        ),
    ] = None,
    miss_cost: Annotated[
        float | None,
        typer.Option(
            help="With --defects: cost of a missed defect relative to a false alarm.", show_default="maximize F1"
        ),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave out this photo. Repeatable.", show_default=False)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Accept this photo although it looks unlike the others. Repeatable.",
            show_default=False,
        ),
    ] = None,
    drop_outliers: Annotated[
        bool, typer.Option("--drop-outliers", help="Leave out all photos that look unlike the others.")
    ] = False,
    rotations: Annotated[
        bool, typer.Option("--rotations", help="For parts in any orientation: also compare with turned photos.")
    ] = False,
    aligned: Annotated[
        bool,
        typer.Option("--aligned", help="For parts that are always at the same place: compare place by place."),
    ] = False,
    tile_size: TileSize = None,
    tile_overlap: TileOverlap = None,
    bit_depth: BitDepth = None,
    page: Page = None,
    max_patches: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of stored patches.", show_default="100000")
    ] = None,
    recursive: Recursive = True,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make a detector for your part from a few good photos.

    Writes a checkpoint that compares photos with these photos, thresholds for a false-alarm rate, and report.html.
    Photos that look unlike the others, such as a part with a defect, are listed first; leave them out with --drop or
    --drop-outliers, or accept them with --keep. --update adds photos later.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but some photos could not be read or look unlike the
    others.

    \b
    Examples:
      vip2clip adapt good_photos --output my-part
      vip2clip predict photos --model my-part --heatmap heatmaps
      vip2clip adapt more_photos --update my-part
      vip2clip adapt good_photos --output my-part --defects bad_photos --drop-outliers
    """
    if (output is None) == (update is None):
        raise usage_error("Pass either --output (a new folder) or --update (an adapted checkpoint).")
    if photos is None and not (update is not None and (drop or drop_outliers or defects or false_alarm_rate)):
        raise usage_error("PHOTOS is missing; expected a folder of photos of good parts.")
    if update is not None:
        settings = {"--model": model, "--tile-size": tile_size, "--tile-overlap": tile_overlap}
        settings.update({"--max-patches": max_patches, "--rotations": rotations or None, "--aligned": aligned or None})
        if given := [name for name, value in settings.items() if value is not None]:
            raise usage_error(f"{given[0]} cannot be used with --update: the options of the checkpoint are kept.")
    if miss_cost is not None and defects is None:
        raise usage_error("--miss-cost can only be used with --defects.")
    needs = " --output NEW" if update is None else ""
    check_model("adapt", model, [str(folder) for folder in (photos, defects) if folder is not None], needs)
    import_detector()
    from ..references.adapting import adapt as adapt_checkpoint
    from ..references.summary import summary
    from ..utils.files import check_new_folder
    from ..utils.outputs import check_output

    for option, folder in (("PHOTOS", photos), ("--defects", defects)):
        if folder is not None and not folder.is_dir():
            raise OSError(f"{option} {str(folder)!r} is not a folder; expected a folder of photos.")
    if output is not None:
        check_new_folder(output)
        check_output("--output", output, [folder for folder in (photos, defects, model) if folder is not None])
    options: dict[str, Any] = {} if max_patches is None else {"max_patches": max_patches}
    found = adapt_checkpoint(
        checkpoint_or_bundled(model) if update is None else update,
        photos,
        output,
        update=update is not None,
        false_alarm_rate=false_alarm_rate,
        defects=defects,
        miss_cost=miss_cost,
        keep=keep or (),
        drop=drop or (),
        drop_outliers=drop_outliers,
        rotations=rotations,
        aligned=aligned,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
        bit_depth=bit_depth,
        page=page,
        recursive=recursive,
        device=device,
        seed=seed,
        progress=shows_progress(),
        **options,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        for line in summary(found):
            say(line)
        say(f"Written to {found.folder}. Look at report.html in this folder.")
    unreadable = {**found.unreadable, **(found.defects.unreadable if found.defects else {})}
    if unreadable or found.outliers:
        raise typer.Exit(3)


__all__ = ["adapt"]
