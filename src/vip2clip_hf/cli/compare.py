"""`vip2clip compare`."""

from pathlib import Path
from typing import Annotated

import typer

from .model_argument import check_model
from .options import (
    AnomalousLabel,
    BitDepth,
    ClassName,
    Device,
    Dtype,
    Json,
    KeepSmallRegions,
    MaskChannel,
    MaskInvert,
    MaskOrientation,
    MaskThreshold,
    NormalLabel,
    Page,
    SkipUnreadable,
    class_names,
    mask_options,
    one_of,
    parse_pair,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say, say_error


def compare(
    photos: Annotated[
        str,
        typer.Argument(
            metavar="PHOTOS",
            help="Folder of photos, or a labelled dataset: a benchmark as NAME=ROOT, a folder, table or Hub id.",
        ),
    ],
    methods: Annotated[
        str, typer.Option(help="Methods: all, or some of clip,winclip,april-gan,anomalyclip,adaclip,vip2clip.")
    ] = "all",
    clip: Annotated[
        str, typer.Option(help="CLIP backbone of methods without a checkpoint: folder, Hub id or bundled.")
    ] = "bundled",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METHOD=]CHECKPOINT",
            help="Checkpoint of a method, by default of ViP²-CLIP. Repeatable.",
            show_default=False,
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos of good parts, or with one subfolder per category.", show_default="zero-shot"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.json, scores.csv, table.md and sheet.png.", show_default="only the table is shown"
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Photos in the sheet.")] = 6,
    class_name: ClassName = None,
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "test",
    category: Annotated[
        list[str] | None, typer.Option(help="Use this category only. Repeatable.", show_default=False)
    ] = None,
    normal_label: NormalLabel = None,
    anomalous_label: AnomalousLabel = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos per batch.")] = 4,
    num_workers: Annotated[int, typer.Option(min=0, help="Data loading workers.")] = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    fpr_limit: Annotated[float, typer.Option(help="False-positive rate up to which AUPRO is integrated.")] = 0.3,
    aupro_convention: Annotated[
        str,
        typer.Option(
            help="exact; or release, the thresholds of the authors' code.",
            callback=one_of("--aupro-convention", "exact", "release"),
        ),
    ] = "exact",
    mask_threshold: MaskThreshold = None,
    mask_channel: MaskChannel = None,
    mask_invert: MaskInvert = None,
    mask_orientation: MaskOrientation = None,
    keep_small_regions: KeepSmallRegions = None,
    bit_depth: BitDepth = None,
    page: Page = None,
    skip_unreadable: SkipUnreadable = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier comparison in OUTPUT.")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compare methods on the same photos in one table.

    Prints quality (of labelled photos), time and memory of each method. With --output, also writes the score of each
    photo and one picture sheet: rows are photos, columns are methods, all maps on one colour scale. Methods with the
    same vision tower share its run.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but photos could not be read.

    \b
    Examples:
      vip2clip compare photos --output comparison
      vip2clip compare photos --references good --methods winclip,vip2clip --output comparison
      vip2clip compare mvtec=MVTec --clip openai/clip-vit-large-patch14-336 --model april-gan=org/april-gan
    """
    from ..comparison.comparing import compare_methods
    from ..comparison.competitors import choose_methods
    from ..comparison.table import comparison_table
    from ..data.sources import DataSource
    from ..utils.outputs import check_output

    models = dict(
        parse_pair(text if "=" in text else f"vip2clip={text}", "--model", "METHOD=CHECKPOINT", "april-gan=outputs")
        for text in model or ()
    )
    for checkpoint in models.values():
        check_model("compare", checkpoint, [photos])
    try:
        names, _ = choose_methods(methods)
    except ValueError as error:
        raise usage_error(f"--{error}") from error
    if surplus := [name for name in models if name not in names]:
        raise usage_error(f"--model is for {surplus[0]!r}; expected one of the compared methods, {', '.join(names)}.")
    options = mask_options(mask_threshold, mask_channel, mask_invert, mask_orientation, keep_small_regions)
    source = DataSource.parse(photos, split, category, options, normal_label, anomalous_label)
    if output is not None:
        check_output("--output", output, [source.root, *([references] if references is not None else [])])
    result = compare_methods(
        source,
        methods,
        clip=clip,
        models=models,
        references=references,
        output=output,
        class_name=class_names(class_name),
        rows=rows,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        num_workers=num_workers,
        fpr_limit=fpr_limit,
        aupro_convention=aupro_convention,
        bit_depth=bit_depth,
        page=page,
        skip_unreadable=skip_unreadable,
        overwrite=overwrite,
        progress=shows_progress(),
    )
    if as_json:
        print_json(result)
    else:
        say(f"{result['photos']}: {result['num_images']} photos\n\n{comparison_table(result['methods'])}\n")
        for line in result["notes"]:
            say(line)
        if output is not None:
            say(f"\nWritten to {output}: results.json, scores.csv, table.md, sheet.png")
    if "unreadable" in result:
        say_error(f"{len(result['unreadable'])} photos could not be read.")
        raise typer.Exit(3)


__all__ = ["compare"]
