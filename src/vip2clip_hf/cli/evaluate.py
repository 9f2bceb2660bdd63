"""`vip2clip evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    Backbone,
    BitDepth,
    Device,
    Dtype,
    Json,
    Page,
    SkipUnreadable,
    one_of,
    print_json,
    shows_progress,
)


def evaluate(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]ROOT",
            help="Labelled datasets: a benchmark as NAME=ROOT (mvtec=path/to/MVTec), or a folder, table or Hub id.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hub id.")],
    output: Annotated[
        Path, typer.Option(help="Folder for results, tables and sheets. An interrupted run resumes.")
    ],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "test",
    category: Annotated[
        list[str] | None, typer.Option(help="Evaluate this category only. Repeatable.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model in the tables.", show_default="checkpoint name")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    num_workers: Annotated[int, typer.Option(min=0, help="Data loading workers per process.")] = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    backbone: Backbone = None,
    fpr_limit: Annotated[float, typer.Option(help="False-positive rate up to which AUPRO is integrated.")] = 0.3,
    aupro_convention: Annotated[
        str,
        typer.Option(
            help="exact; or release, the thresholds of the authors' code, to compare with published results.",
            callback=one_of("--aupro-convention", "exact", "release"),
        ),
    ] = "exact",
    sheets: Annotated[int, typer.Option(min=0, help="Example images per category in the sheets; 0 for none.")] = 8,
    sheet_range: Annotated[
        tuple[float, float], typer.Option(help="Anomaly map values at the ends of the colour scale in the sheets.")
    ] = (0.0, 1.0),
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Save all anomaly maps as float16.")] = False,
    bit_depth: BitDepth = None,
    page: Page = None,
    skip_unreadable: SkipUnreadable = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier evaluation in OUTPUT.")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Evaluate a checkpoint on labelled datasets.

    Prints the tables of the paper with your results next to the published ones. Writes results.json, results.csv,
    tables.md, tables.tex, the score of each image, and sheets of example images. If interrupted, run the same command
    again to resume. To use several processes, run accelerate launch training/evaluate.py with the same arguments.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but --skip-unreadable left out images.

    \b
    Examples:
      vip2clip evaluate mvtec=MVTec visa=VisA --model checkpoint --output results
      vip2clip evaluate photos --model org/vip2clip --output results --save-maps
    """
    from ..data.sources import DataSource
    from ..evaluation.runner import evaluate_checkpoint
    from ..evaluation.tables import category_table, comparison_tables, notes
    from ..models.loading import name_of
    from ..utils.distributed import world
    from ..utils.serialization import without_nan

    def show(result: dict[str, Any]) -> None:
        typer.echo(f"\n{result['name']}, in percent\n{category_table(result)}")

    name = name_of(model) if name is None else name
    results = evaluate_checkpoint(
        model,
        [DataSource.parse(text, split, category) for text in sets],
        output,
        device=device,
        dtype=dtype,
        backbone=backbone,
        name=name,
        batch_size=batch_size,
        num_workers=num_workers,
        fpr_limit=fpr_limit,
        aupro_convention=aupro_convention,
        sheets=sheets,
        sheet_range=sheet_range,
        save_maps=save_maps,
        overwrite=overwrite,
        bit_depth=bit_depth,
        page=page,
        skip_unreadable=skip_unreadable,
        progress=shows_progress(),
        on_result=None if as_json else show,
    )
    if world()[0] > 0:
        return
    if as_json:
        print_json(without_nan(results))
    else:
        for table in comparison_tables(results, name, "simple", methods=("ViP²-CLIP",)).values():
            typer.echo(f"\n{table}")
        for line in notes(results):
            typer.echo(line)
        typer.echo(f"\nWritten to {output}: results.json, results.csv, tables.md (all six methods), tables.tex")
    if any(result.get("unreadable") for result in results):
        raise typer.Exit(3)


__all__ = ["evaluate"]
