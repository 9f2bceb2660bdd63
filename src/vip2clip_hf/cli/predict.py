"""`vip2clip predict`."""

import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .options import (
    Backbone,
    Device,
    Dtype,
    Json,
    Model,
    checkpoint_or_bundled,
    print_json,
    shows_progress,
    usage_error,
)


# For more photos than this, recommend --output.
MANY_PHOTOS = 1000
# Formats of a heatmap, by the ending of its name.
HEATMAP_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip


def predict(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Photo or folder of photos. With --output, also a table, meta.json, Hub id or NAME=ROOT.",
        ),
    ],
    model: Model = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Save the heatmap: an image file, or a folder outside SOURCE if SOURCE is a folder."
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
    tile_size: Annotated[
        int | None,
        typer.Option(
            min=0, help="Split larger photos into square tiles of this size, in pixels; 0 for none.",
            show_default="set by the checkpoint",
        ),
    ] = None,
    tile_overlap: Annotated[
        float | None,
        typer.Option(help="Overlap of neighbouring tiles, as a fraction of the tile size.", show_default="0.25"),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels than this.", show_default="89 million")
    ] = None,
    as_json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a table of the results. Accepts any number of photos, including subfolders. An "
            "interrupted run resumes."
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
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="With --output: delete an earlier prediction in that folder. With --heatmap: replace existing files.",
        ),
    ] = False,
) -> None:  # fmt: skip
    """Score photos and locate defects.

    Prints one line per photo. With --output, predicts any number of photos and writes OUTPUT/predictions.parquet. If
    interrupted, run the same command again to resume. To use several processes, run accelerate launch --module
    vip2clip_hf predict with the same arguments.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 some photos could not be read.

    \b
    Examples:
      vip2clip predict photo.jpg --heatmap heatmap.png
      vip2clip predict photos --model org/vip2clip --heatmap heatmaps --json
      vip2clip predict photos --model org/vip2clip --output predictions --heatmaps --num-workers 4
    """
    bulk: dict[str, Any] = {"heatmaps": heatmaps, "maps": maps, "batch_size": batch_size, "num_workers": num_workers}
    bulk.update(compile=compile_model, split=split, category=category, overwrite=overwrite)
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
    if max_pixels is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels
    model = checkpoint_or_bundled(model)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "backbone": backbone, "top_k": top_k}
    options.update(tile_size=tile_size, tile_overlap=tile_overlap)
    if threshold is not None:
        options["threshold"] = (threshold, threshold)
    if output is not None:
        _predict_to_folder(source, model, output, as_json, bulk, options)
    else:
        options.update(regions=regions)
        _predict_photos(Path(source), model, heatmap, as_json, overwrite, options)


def _predict_to_folder(
    source: str, model: str, output: Path, as_json: bool, bulk: dict[str, Any], options: dict[str, Any]
) -> None:
    """Write the table of `predict --output` and print a summary."""
    from ..inference.images import find_source
    from ..inference.prediction import predict_checkpoint
    from ..utils.distributed import world

    images = find_source(source, bulk.pop("split"), bulk.pop("category"))
    options.update((name, value) for name, value in bulk.items() if value is not None)
    found = predict_checkpoint(model, images, output, progress=shows_progress(), **options)
    if world()[0] > 0:
        return
    if as_json:
        print_json(found)
    else:
        if found["num_done_before"] == found["num_images"]:
            typer.echo("All images were already predicted.")
        typer.echo(
            f"{found['num_images']} images: {found['num_normal']} normal, {found['num_anomalous']} anomalous, "
            f"{found['num_unreadable']} unreadable. Written to {found['table']}"
        )
    if found["num_unreadable"] == found["num_images"]:
        raise OSError(f"None of the images in {source!r} could be read; see column 'error' of the table.")
    if found["num_unreadable"]:
        raise typer.Exit(3)


def _heatmap_files(source: Path, photos: list[Path], heatmap: Path, overwrite: bool) -> dict[Path, Path]:
    """Return the file of the heatmap of each photo, after checking that no photo and no other file is replaced."""
    several = source.is_dir()
    if several and heatmap.is_file():
        raise OSError(f"{str(heatmap)!r} is a file; expected a folder for the heatmaps of several photos.")
    if not several and heatmap.is_dir():
        raise OSError(f"{str(heatmap)!r} is a folder; expected a file for the heatmap of one photo.")
    if several and heatmap.resolve().is_relative_to(source.resolve()):
        raise OSError(
            f"--heatmap {str(heatmap)!r} is inside the folder of the photos, where the heatmaps would be read as "
            "photos the next time; expected another folder."
        )
    files = {source: heatmap}
    if several:  # photos in subfolders can have the same name
        files = {photo: heatmap / f"{photo.relative_to(source).as_posix()}.png" for photo in photos}
    if not several and heatmap.suffix.lower() not in HEATMAP_FORMATS:
        raise OSError(f"{str(heatmap)!r} has an unknown format; expected a name with {', '.join(HEATMAP_FORMATS)}.")
    existing = [file for file in files.values() if os.path.lexists(file)]
    inputs = {(found.st_dev, found.st_ino) for found in map(os.stat, filter(os.path.exists, photos))}
    for file in filter(os.path.exists, existing):
        found = os.stat(file)
        if (found.st_dev, found.st_ino) in inputs:
            raise OSError(f"The heatmap {str(file)!r} would replace a photo; expected another file.")
    if existing and not overwrite:
        raise OSError(
            f"{str(existing[0])!r} already exists{f', and {len(existing) - 1} more' if len(existing) > 1 else ''}; "
            "choose another path, or replace existing heatmaps with --overwrite."
        )
    return files


def _predict_photos(
    source: Path, model: str, heatmap: Path | None, as_json: bool, overwrite: bool, options: dict[str, Any]
) -> None:
    """Score one photo or a folder of photos and print the results."""
    from tqdm.auto import tqdm

    from ..models.loading import check_dtype
    from ..models.vip2clip import AnomalyDetectionPipeline
    from ..models.vip2clip.image_loading_vip2clip import list_images, load_image

    if not source.exists():
        raise OSError(f"{str(source)!r} not found; expected a photo or a folder of photos.")
    several = source.is_dir()
    photos = [Path(path) for path in list_images(source)] if several else [source]
    files = {} if heatmap is None else _heatmap_files(source, photos, heatmap, overwrite)
    if len(photos) > MANY_PHOTOS:
        typer.echo(
            f"{len(photos)} photos: with --output FOLDER, prediction is batched and an interrupted run resumes.",
            err=True,
        )
    options["dtype"] = check_dtype(options["dtype"])
    progress = shows_progress()
    detector = AnomalyDetectionPipeline.from_pretrained(model, **options)
    results = []
    for photo in tqdm(photos, disable=not (several and progress)):
        entry: dict[str, Any] = {"image": str(photo)}
        try:
            image = load_image(photo)
        except (OSError, ValueError) as error:
            if not several:
                raise OSError(str(error) if str(photo) in str(error) else f"{photo}: {error}") from error
            results.append({**entry, "error": str(error)})
            continue
        found = cast(dict[str, Any], detector(image, heatmap=heatmap is not None))
        entry.update(score=found["score"], label=found["label"], anomalous_pixels=int(found["mask"].sum()))
        entry.update((name, found[name]) for name in ("p_value", "regions") if name in found)
        if heatmap is not None:
            target = files[photo]
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.with_name(f".{target.name}.tmp")
            found["heatmap"].save(staged, format=HEATMAP_FORMATS[target.suffix.lower()])
            os.replace(staged, target)
            entry["heatmap"] = str(target)
        results.append(entry)
    if as_json:
        print_json(results if several else results[0])
    else:
        for entry in results:
            _print_result(entry)
    if any("error" in entry for entry in results):
        raise typer.Exit(3)


def _print_result(entry: dict[str, Any]) -> None:
    text = entry.get("error") or f"{entry['score']:.3f} {entry['label']}"
    if entry.get("p_value") is not None:
        text += f", p-value {entry['p_value']:.3g}"
    typer.echo(f"{entry['image']}: {text}")
    for region in entry.get("regions", ()):
        left, top, right, bottom = region["box"]
        typer.echo(
            f"  {left}, {top} to {right}, {bottom}: {region['area']} pixels, "
            f"mean {region['mean_score']:.3f}, peak {region['peak_score']:.3f}"
        )


__all__ = ["predict"]
