"""`vip2clip predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.extras import require
from .options import (
    Backbone,
    BitDepth,
    Device,
    Dtype,
    Json,
    Model,
    Page,
    Recursive,
    TileOverlap,
    TileSize,
    checkpoint_or_bundled,
    path_or_url,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say


def predict(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Photos, folders of photos, patterns, URLs, or - to read a list of paths from the standard input. "
            "With --output, one folder, table, meta.json, Hub id or NAME=ROOT; or s3://, gs:// or hf://, or .tar and "
            ".parquet files with photos.",
        ),
    ],
    model: Model = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Save the heatmap: an image file, or a folder outside SOURCE for several photos."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A photo is anomalous if its score is greater than this.", show_default="set by the checkpoint"
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Number of top patches per layer used for the image score.", show_default="set by the checkpoint"
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = "float32",
    backbone: Backbone = None,
    regions: Annotated[bool, typer.Option("--regions", help="List the connected regions of the mask.")] = False,
    tile_size: TileSize = None,
    tile_overlap: TileOverlap = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels than this.", show_default="89 million")
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos of good parts to compare with, including its subfolders.",
            show_default="references of the checkpoint, if any",
        ),
    ] = None,
    no_references: Annotated[
        bool, typer.Option("--no-references", help="Do not use the references of the checkpoint.")
    ] = False,
    recursive: Recursive = True,
    bit_depth: BitDepth = None,
    page: Page = None,
    as_json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=path_or_url,
            metavar="PATH",
            help="Folder for a table of the results, also s3://, gs:// or hf://. Accepts any number of photos, "
            "including subfolders. An interrupted run resumes.",
        ),
    ] = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="With --output: save all heatmaps.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="With --output: save all anomaly maps as float16.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --output: photos per batch.", show_default="8")
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="With --output: data loading workers per process.", show_default="0"),
    ] = None,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="With --output: compile the vision tower with torch.compile.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="With --output: split of the dataset.", show_default="test")
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(help="With --output: predict this category only. Repeatable.", show_default=False),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="With --output: accelerate, or ray to use actors of a Ray cluster.", show_default="accelerate"
        ),
    ] = None,
    num_actors: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --engine ray: number of actors.", show_default="one per GPU, or per four CPU cores"
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="With --output: delete an earlier prediction in that folder. With --heatmap: replace existing files.",
        ),
    ] = False,
) -> None:  # fmt: skip
    """Score photos and locate defects.

    Prints one line per photo, or with --json a list of records in UTF-8; a photo that could not be read has an error.
    With --output, predicts any number of photos and writes OUTPUT/predictions.parquet. If interrupted, run the same
    command again to resume. To use several processes, run accelerate launch --module vip2clip_hf predict with the same
    arguments.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 some photos could not be read.

    \b
    Examples:
      vip2clip predict photo.jpg --heatmap heatmap.png
      vip2clip predict photos --model org/vip2clip --heatmap heatmaps --json
      vip2clip predict photos --references good-photos
      find . -name "*.jpg" -print0 | vip2clip predict - --model org/vip2clip
      vip2clip predict photos --model org/vip2clip --output predictions --heatmaps --num-workers 4
      vip2clip predict s3://bucket/photos --output s3://bucket/predictions --engine ray
    """
    bulk: dict[str, Any] = {"heatmaps": heatmaps, "maps": maps, "batch_size": batch_size, "num_workers": num_workers}
    bulk.update(compile=compile_model, split=split, category=category, overwrite=overwrite)
    bulk.update(engine=engine, num_actors=num_actors)
    given = [f"--{name.replace('_', '-')}" for name, value in bulk.items() if value not in (None, False, [])]
    if heatmap is not None and given == ["--overwrite"]:
        given = []
    if output is None and given:
        raise usage_error(f"{', '.join(given)} can only be used with --output FOLDER.")
    if output is not None and heatmap is not None:
        raise usage_error(
            "--heatmap OUT cannot be used with --output; use --heatmaps, which writes to OUTPUT/heatmaps."
        )
    if output is not None and regions:
        raise usage_error("--regions cannot be used with --output: the table has no column for regions.")
    if output is not None and (len(source) > 1 or source[0] == "-"):
        raise usage_error(
            f"--output is used with {'a list' if source[0] == '-' else f'{len(source)} sources'}; expected one folder "
            "or dataset. To predict a list, write it to a CSV file with the column image."
        )
    if engine not in (None, "accelerate", "ray"):
        raise usage_error(f"--engine is {engine!r}; expected accelerate or ray.")
    if num_actors is not None and engine != "ray":
        raise usage_error("--num-actors can only be used with --engine ray.")
    if references is not None and no_references:
        raise usage_error("--references and --no-references exclude each other; pass one of them.")
    if references is not None and not references.is_dir():
        raise OSError(f"--references {str(references)!r} is not a folder; expected a folder of photos of good parts.")
    if max_pixels is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels
    if output is not None:
        require("data", "Prediction with --output", "accelerate", "datasets", "pyarrow")
        if engine == "ray":
            require("ray", "Predicting with Ray", "ray.data")
    if regions:
        require("data", "A list of regions", "scipy")
    model = checkpoint_or_bundled(model)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "backbone": backbone, "top_k": top_k}
    options.update(tile_size=tile_size, tile_overlap=tile_overlap, bit_depth=bit_depth, page=page)
    if references is not None or no_references:
        options["references"] = None if references is None else str(references)
    if threshold is not None:
        options["threshold"] = (threshold, threshold)
    if output is not None:
        if not recursive:
            options["recursive"] = False
        _predict_to_folder(source[0], model, output, as_json, bulk, options)
    else:
        from .photos import predict_photos

        options.update(regions=regions)
        predict_photos(source, model, heatmap, as_json, overwrite, recursive, options)


def _predict_to_folder(
    source: str, model: str, output: Path, as_json: bool, bulk: dict[str, Any], options: dict[str, Any]
) -> None:
    """Write the table of `predict --output` and print a summary."""
    from ..inference.images import find_source
    from ..inference.prediction import predict_checkpoint
    from ..utils.distributed import world
    from ..utils.outputs import check_output

    check_output("--output", output, [source, source.partition("=")[2]])
    images = find_source(source, bulk.pop("split"), bulk.pop("category"))
    options.update((name, value) for name, value in bulk.items() if value is not None)
    found = predict_checkpoint(model, images, output, progress=shows_progress(), **options)
    if world()[0] > 0:
        return
    if as_json:
        print_json(found)
    else:
        if found["num_done_before"] == found["num_images"]:
            say("All images were already predicted.")
        say(
            f"{found['num_images']} images: {found['num_normal']} normal, {found['num_anomalous']} anomalous, "
            f"{found['num_unreadable']} unreadable. Written to {found['table']}"
        )
    if found["num_unreadable"] == found["num_images"]:
        raise OSError(f"None of the images in {source!r} could be read; see column 'error' of the table.")
    if found["num_unreadable"]:
        raise typer.Exit(3)


__all__ = ["predict"]
