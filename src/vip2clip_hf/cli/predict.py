"""`vip2clip predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.extras import require
from .detector_options import MaxPixels, Threshold, TopK, detector_options, limit_pixels
from .model_argument import check_model
from .options import (
    Backbone,
    BitDepth,
    Device,
    Dtype,
    Json,
    Model,
    NoReferences,
    Page,
    Recursive,
    References,
    TileOverlap,
    TileSize,
    checkpoint_or_bundled,
)
from .predict_arguments import check_arguments, path_or_url
from .result_files import ResultFiles
from .runtimes import Runtime, check_runtime


def predict(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTOS...",
            help="Photos, folders of photos, patterns, URLs, or - to read a list of paths from the standard input. "
            "With --output, one folder, table, meta.json, Hub id or NAME=ROOT; or s3://, gs:// or hf://, or .tar and "
            ".parquet files with photos.",
        ),
    ],
    model: Model = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Save the heatmap: an image file, or a folder outside PHOTOS for several photos."
        ),
    ] = None,
    threshold: Threshold = None,
    top_k: TopK = None,
    device: Device = None,
    dtype: Dtype = "float32",
    backbone: Backbone = None,
    runtime: Runtime = None,
    regions: Annotated[bool, typer.Option("--regions", help="List the connected regions of the mask.")] = False,
    tile_size: TileSize = None,
    tile_overlap: TileOverlap = None,
    max_pixels: MaxPixels = None,
    references: References = None,
    no_references: NoReferences = False,
    recursive: Recursive = True,
    bit_depth: BitDepth = None,
    page: Page = None,
    as_json: Json = False,
    show_all: Annotated[
        bool, typer.Option("--all", help="Print one line per photo, also for more than 20 photos.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this CSV file.")] = None,
    xlsx: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this Excel file.")] = None,
    sort: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Copy the photos to FOLDER/good, FOLDER/defect and FOLDER/unsure. Repeat to resume."
        ),
    ] = None,
    unsure_margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --sort: scores within this distance of the threshold are unsure.",
            show_default="from half to twice the false-alarm rate of the calibration; 0.05 without a calibration",
        ),
    ] = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="With --output or --csv: predict new photos only, and keep the rows of photos that are gone.",
        ),
    ] = False,
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
            help="With --output: delete an earlier prediction in that folder. Otherwise: replace existing files.",
        ),
    ] = False,
) -> None:  # fmt: skip
    """Score photos and locate defects.

    Prints one line per photo, or a summary for more than 20 photos. With --json, prints a list of records in UTF-8; a
    photo that could not be read has an error. Photos are never changed or moved.
    With --output, predicts any number of photos and writes OUTPUT/predictions.parquet. If interrupted, run the same
    command again to resume. To use several processes, run accelerate launch --module vip2clip_hf predict with the same
    arguments.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 some photos could not be read.

    \b
    Examples:
      vip2clip predict photo.jpg --heatmap heatmap.png
      vip2clip predict photos --model org/vip2clip --heatmap heatmaps --json
      vip2clip predict photos --references good-photos
      vip2clip predict photos --csv results.csv --sort sorted
      find . -name "*.jpg" -print0 | vip2clip predict - --model org/vip2clip
      vip2clip predict photos --model org/vip2clip --output predictions --heatmaps --num-workers 4
      vip2clip predict photos --runtime onnx --model exported
      vip2clip predict s3://bucket/photos --output s3://bucket/predictions --engine ray
    """
    bulk: dict[str, Any] = {"heatmaps": heatmaps, "maps": maps, "batch_size": batch_size, "num_workers": num_workers}
    bulk.update(compile=compile_model, split=split, category=category, overwrite=overwrite, append=append)
    bulk.update(engine=engine, num_actors=num_actors)
    files = ResultFiles(csv, xlsx, sort, unsure_margin, append=append, overwrite=overwrite)
    check_arguments(
        source,
        files=files,
        output=output,
        heatmap=heatmap,
        regions=regions,
        references=references,
        no_references=no_references,
        bulk=bulk,
    )
    check_runtime(runtime, model, output, backbone, references, dtype)
    limit_pixels(max_pixels)
    if output is not None:
        require("data", "Prediction with --output", "accelerate", "datasets", "pyarrow")
        if engine == "ray":
            require("ray", "Predicting with Ray", "ray.data")
    if runtime is None:
        check_model("predict", model, source)
    model = checkpoint_or_bundled(model)
    options = detector_options(
        references=references, no_references=no_references, threshold=threshold, device=device, dtype=dtype,
        backbone=backbone, top_k=top_k, tile_size=tile_size, tile_overlap=tile_overlap, bit_depth=bit_depth, page=page,
    )  # fmt: skip
    if output is not None:
        if not recursive:
            options["recursive"] = False
        from .predict_folder import predict_folder

        predict_folder(source[0], model, output, as_json, bulk, options, files)
    else:
        from .photos import predict_photos

        options.update(regions=regions, runtime=runtime)
        predict_photos(source, model, heatmap, as_json, overwrite, recursive, options, files, show_all)


__all__ = ["predict"]
