"""The `vip2clip` command."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from . import __version__


app = typer.Typer(
    help="Zero-shot visual anomaly detection with ViP²-CLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # --save_maps is as good as --save-maps: the training scripts, as all of transformers', have underscores.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)


# Options that several commands have.
Model = Annotated[
    str | None, typer.Option(help="Checkpoint: folder or Hub id (default: the small one of the package).")
]
Backbone = Annotated[
    str | None, typer.Option(help="For a checkpoint of adapters only: its CLIP, where it is not the one it names.")
]
Device = Annotated[
    str | None, typer.Option(help="Where to run: cpu, cuda, mps (default: an accelerator where there is one).")
]
Dtype = Annotated[str, typer.Option(help="Precision: float32, bfloat16 or float16.")]


def _version(show: bool):
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
):
    pass


def _pair(text: str, option: str, form: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"{option} {text!r}: expected {form}, such as {example}.")
    return name.strip(), value


def parse_settings(settings: list[str]) -> dict:
    """`["image_size=518", "feature_layers=[6, 12]"]` as a dict; values are JSON, or text where they are not."""
    parsed = {}
    for setting in settings:
        name, value = _pair(setting, "--set", "NAME=VALUE", "image_size=518")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def _checkpoint_or_bundled(model: str | None) -> str:
    if model is not None:
        return model
    from .bundled import bundled_checkpoint

    if os.environ.get("RANK", "0") == "0":  # of several processes one says it
        typer.echo(
            "Using the small checkpoint of the package, made to try things out. For real work name one on CLIP "
            "ViT-L/14 with --model: convert the authors' or train your own, see docs/quickstart.md.",
            err=True,
        )
    return str(bundled_checkpoint())


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Option(help="A .pth file of the authors' released code.")],
    clip: Annotated[
        str, typer.Option(help="Its backbone: folder or Hub id, openai/clip-vit-large-patch14-336 for the authors'.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    adapters_only: Annotated[
        bool, typer.Option("--adapters-only", help="Leave out the backbone; it is fetched when the model is loaded.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Field of the configuration, such as top_k=100. Repeatable."),
    ] = None,
):
    """Convert a checkpoint of the authors' code to a folder for from_pretrained.

    Example: vip2clip convert --checkpoint epoch_10.pth --clip openai/clip-vit-large-patch14-336 --output vip2clip
    """
    from .convert_vip2clip_to_hf import convert_release_checkpoint
    from .hub import check_target, save_checkpoint
    from .image_processing_vip2clip import ViP2ClipImageProcessor

    check_target(output)
    model = convert_release_checkpoint(checkpoint, clip, **parse_settings(setting or []))
    save_checkpoint(model, ViP2ClipImageProcessor(size=model.config.image_size), output, adapters_only=adapters_only)
    typer.echo(f"Wrote {output}")


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="Folder to write; must be empty or not exist.")],
    model: Model = None,
    format_name: Annotated[
        str, typer.Option("--format", help="onnx (model.onnx), or torch (model.pt2, a program of torch.export).")
    ] = "onnx",
    opset: Annotated[
        int | None, typer.Option(help="Version of ONNX's operators (default: 18).", show_default=False)
    ] = None,
    backbone: Backbone = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
):
    """Write a checkpoint as one graph from pixel values to scores and maps, and compare it with PyTorch.

    Batches can have any size. Where an output is more than 1e-4 away from PyTorch's nothing is written.

    Examples:

    vip2clip export --model checkpoint --output exported

    vip2clip export --model checkpoint --output exported --format torch
    """
    import torch

    from .export import DEFAULT_OPSET, check_format, check_opset, check_packages, export_onnx, export_torch
    from .files import check_new_folder
    from .image_processing_vip2clip import ViP2ClipImageProcessor
    from .modeling_vip2clip import ViP2ClipForAnomalyDetection

    # Before the checkpoint is loaded, which can take minutes.
    check_format(format_name)
    check_packages(format_name)
    if format_name == "onnx":
        opset = DEFAULT_OPSET if opset is None else opset
        check_opset(opset)
    elif opset is not None:
        raise ValueError("--opset is for --format onnx; leave it out.")
    check_new_folder(output)
    model = _checkpoint_or_bundled(model)
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(model, dtype=torch.float32, backbone=backbone)
    image_processor = ViP2ClipImageProcessor.from_pretrained(model)
    if format_name == "onnx":
        report = export_onnx(loaded, image_processor, output, opset=opset)
    else:
        report = export_torch(loaded, image_processor, output)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(f"Wrote {output}")
    for name, size in report["files"].items():
        typer.echo(f"  {name}: {f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size} bytes'}")
    found = ", ".join(f"{name} {value:.1e}" for name, value in report["largest_deviation"].items())
    typer.echo(f"Largest deviation from PyTorch: {found} (allowed: {report['tolerance']:g})")


@app.command()
def data(
    root: Annotated[str, typer.Argument(help="Folder, table (CSV, JSONL, Parquet), meta.json or Hub id.")],
    benchmark: Annotated[
        str | None, typer.Option(help="Read it as this benchmark of the paper: mvtec, visa, ... (default: own data).")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to report on.")] = "test",
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category. Repeatable.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout to read it in, instead of the one recognised: tree, classes, ...")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="Column of a table, such as image=file_name. Repeatable."),
    ] = None,
    normal_label: Annotated[
        list[str] | None, typer.Option(help="Label of a table that means normal. Repeatable.", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also open every image and mask: damaged files, sizes, empty masks.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when there is any warning.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="First generate a data set with exact masks in ROOT, a new folder.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which generated data set, or which thirds.")] = 0,
    write_thirds: Annotated[
        Path | None,
        typer.Option(
            help="First cut the official KolektorSDD in ROOT into the thirds the paper evaluates, into here."
        ),
    ] = None,
):
    """Say what a data set holds: layout, counts, masks, files ignored and why, licence and citation.

    Exit codes: 0 all is well, 1 it cannot be read, 3 --check found problems or --strict warnings.

    Examples:

    vip2clip data photos

    vip2clip data MVTec --benchmark mvtec --check

    vip2clip data generated --synthetic
    """
    from .data import index_benchmark, index_folder

    if synthetic:
        from .data.synthetic import write_dataset

        write_dataset(root, num_train=8, seed=seed)
    if write_thirds is not None:
        from .data.kolektor import write_kolektor_thirds

        root = str(write_kolektor_thirds(root, write_thirds, seed=seed, progress=sys.stderr.isatty()))
        benchmark = "ksdd"
    if benchmark is not None:
        if column or normal_label:
            raise ValueError("--column and --normal-label are for tables and Hub data sets; leave out --benchmark.")
        index = index_benchmark(benchmark, root, split, category, layout=layout)
    else:
        columns = dict(_pair(text, "--column", "NAME=COLUMN", "image=file_name") for text in column or []) or None
        index = index_folder(root, split, category, layout=layout, columns=columns, normal_labels=normal_label or None)
    found = None
    if check:
        from .data import check_data

        found = check_data(index, progress=sys.stderr.isatty())
    if as_json:
        content = index.report.to_dict()
        if found is not None:
            content["check"] = found.to_dict()
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        typer.echo(index.report)
        if found is not None:
            typer.echo(f"\n{found}")
    if (found is not None and found.problems) or (strict and index.warnings):
        raise typer.Exit(3)


# More photos than this are better predicted into a folder.
MANY_PHOTOS = 1000


@app.command()
def predict(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A photo, or a folder of photos. With --output also a table, meta.json, Hub id or NAME=ROOT.",
        ),
    ],
    model: Model = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Draw the map over the photo: a PNG file, or a folder for several photos."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Above this a photo is anomalous (default: that of the checkpoint).")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Patches per layer that stand for a photo (default: that of the checkpoint).")
    ] = None,
    device: Device = None,
    dtype: Dtype = "float32",
    backbone: Backbone = None,
    regions: Annotated[bool, typer.Option("--regions", help="List the connected areas of the mask.")] = False,
    tile_size: Annotated[
        int | None, typer.Option(min=0, help="See larger photos in tiles of this side in pixels; 0 for none.")
    ] = None,
    tile_overlap: Annotated[
        float | None, typer.Option(help="Share of a tile that neighbours have in common (default: 0.25).")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels than this (default: 89 million).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for a table of any number of photos, subfolders included; goes on after a stop."),
    ] = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="With --output: draw all heatmaps.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="With --output: keep all maps, as float16.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --output: photos that go through the model together (default: 8).")
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="With --output: workers that read photos, for each process (default: 0)."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="With --output: compile the vision tower.")] = False,
    split: Annotated[str | None, typer.Option(help="With --output: split of a data set (default: test).")] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(help="With --output: only this category of a data set. Repeatable.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --output: delete what another prediction has written there.")
    ] = False,
):
    """Score photos, and draw where the defects are.

    With --output any number of photos is streamed into a table, OUTPUT/predictions.parquet. Several processes share
    the work: accelerate launch --module vip2clip_hf predict with the same arguments. Killed, it goes on when called
    again.

    Exit codes: 0 all is well, 1 nothing could be done, 3 some photos could not be read.

    Examples:

    vip2clip predict photo.jpg --heatmap heatmap.png

    vip2clip predict photos --model org/vip2clip --heatmap heatmaps --json

    vip2clip predict photos --model org/vip2clip --output predictions --heatmaps --num-workers 4
    """
    bulk = {"heatmaps": heatmaps, "maps": maps, "batch_size": batch_size, "num_workers": num_workers}
    bulk.update(compile=compile, split=split, category=category, overwrite=overwrite)
    given = [f"--{name.replace('_', '-')}" for name, value in bulk.items() if value not in (None, False, [])]
    if output is None and given:
        raise ValueError(f"Without --output there is no {', '.join(given)}; add --output FOLDER or leave them out.")
    if output is not None and heatmap is not None:
        raise ValueError("--heatmap OUT goes without --output; with it --heatmaps draws into OUTPUT/heatmaps.")
    if output is not None and regions:
        raise ValueError("--regions goes without --output: the table has no place for lists of them.")
    if max_pixels is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels
    model = _checkpoint_or_bundled(model)
    options = {"device": device, "dtype": dtype, "backbone": backbone, "top_k": top_k}
    options.update(tile_size=tile_size, tile_overlap=tile_overlap)
    if threshold is not None:
        options["threshold"] = (threshold, threshold)
    if output is not None:
        _predict_to_folder(source, model, output, as_json, bulk, options)
    else:
        options.update(regions=regions)
        _predict_photos(Path(source), model, heatmap, as_json, options)


def _predict_to_folder(source: str, model: str, output: Path, as_json: bool, bulk: dict, options: dict):
    from .bulk import find_source, predict_checkpoint
    from .distributed import world
    from .runs import to_json

    images = find_source(source, bulk.pop("split"), bulk.pop("category"))
    options.update((name, value) for name, value in bulk.items() if value is not None)
    found = predict_checkpoint(model, images, output, progress=sys.stderr.isatty(), **options)
    if world()[0] > 0:
        return
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        if found["num_done_before"] == found["num_images"]:
            typer.echo("Nothing was left to do.")
        typer.echo(
            f"{found['num_images']} images: {found['num_normal']} normal, {found['num_anomalous']} anomalous, "
            f"{found['num_unreadable']} unreadable. Written to {found['table']}"
        )
    if found["num_unreadable"] == found["num_images"]:
        raise OSError(f"None of the images of {source!r} could be read; the column error of the table says why.")
    if found["num_unreadable"]:
        raise typer.Exit(3)


def _predict_photos(source: Path, model: str, heatmap: Path | None, as_json: bool, options: dict):
    from tqdm.auto import tqdm

    from .image_processing_vip2clip import list_images
    from .pipeline_anomaly_detection import AnomalyDetectionPipeline
    from .runs import check_dtype

    if not source.exists():
        raise OSError(f"{str(source)!r} not found; expected a photo or a folder of photos.")
    several = source.is_dir()
    photos = [Path(path) for path in list_images(source)] if several else [source]
    if heatmap is not None and several and heatmap.is_file():
        raise OSError(f"{str(heatmap)!r} is a file; expected a folder for the heatmaps of several photos.")
    if heatmap is not None and not several and heatmap.is_dir():
        raise OSError(f"{str(heatmap)!r} is a folder; expected a file for the heatmap of one photo.")
    if len(photos) > MANY_PHOTOS:
        typer.echo(
            f"{len(photos)} photos: with --output FOLDER they go through the model in batches, into a table, and a "
            "run that is stopped can be gone on with.",
            err=True,
        )
    options["dtype"] = check_dtype(options["dtype"])
    detector = AnomalyDetectionPipeline.from_pretrained(model, **options)
    results = []
    for photo in tqdm(photos, disable=not (several and sys.stderr.isatty())):
        entry = {"image": str(photo)}
        try:
            found = detector(str(photo), heatmap=heatmap is not None)
        except OSError as error:
            if not several:
                raise
            results.append({**entry, "error": str(error)})
            continue
        entry.update(score=found["score"], label=found["label"], anomalous_pixels=int(found["mask"].sum()))
        entry.update((name, found[name]) for name in ("p_value", "regions") if name in found)
        if heatmap is not None:
            target = heatmap / f"{photo.name}.png" if several else heatmap
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.with_name(f".{target.name}.tmp")
            found["heatmap"].save(staged, format="PNG")
            os.replace(staged, target)
            entry["heatmap"] = str(target)
        results.append(entry)
    if as_json:
        typer.echo(json.dumps(results if several else results[0], indent=2, ensure_ascii=False))
    else:
        for entry in results:
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
    if any("error" in entry for entry in results):
        raise typer.Exit(3)


@app.command()
def evaluate(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]ROOT...",
            help="Data: a benchmark by its name (mvtec=path/to/MVTec), or a folder, table or Hub id with labels.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Checkpoint: folder or Hub id.")],
    output: Annotated[Path, typer.Option(help="Folder for figures, tables and sheets; goes on with what is there.")],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "test",
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category. Repeatable.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the model in the tables (default: name of the checkpoint).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model together.")] = 8,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read images, for each process.")] = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    backbone: Backbone = None,
    fpr_limit: Annotated[float, typer.Option(help="False positive rate up to which AUPRO is integrated.")] = 0.3,
    aupro_convention: Annotated[
        str, typer.Option(help="exact, or release: the sweep of the authors' code, for published figures.")
    ] = "exact",
    sheets: Annotated[int, typer.Option(min=0, help="Example images in the sheet of a category, 0 for none.")] = 8,
    sheet_range: Annotated[
        tuple[float, float], typer.Option(help="Map values at the ends of the sheets' colour scale.")
    ] = (0.0, 1.0),
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Keep all maps, as float16.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what another evaluation has written to OUTPUT.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
):
    """Evaluate a checkpoint: the paper's tables beside the published figures, sheets, scores of every image.

    Writes results.json, results.csv, tables.md and tables.tex. Several processes share the work: accelerate launch
    training/evaluate.py with the same arguments. Killed, it goes on when called again.

    Examples:

    vip2clip evaluate mvtec=MVTec visa=VisA --model checkpoint --output results

    vip2clip evaluate photos --model org/vip2clip --output results --save-maps
    """
    from .data.sources import DataSource
    from .distributed import world
    from .evaluation.runner import evaluate_checkpoint, without_nan
    from .evaluation.tables import category_table, comparison_tables, notes
    from .runs import name_of, to_json

    def show(result: dict):
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
        progress=sys.stderr.isatty(),
        on_result=None if as_json else show,
    )
    if world()[0] > 0:
        return
    if as_json:
        typer.echo(to_json(without_nan(results)), nl=False)
    else:
        for table in comparison_tables(results, name, "simple", methods=("ViP²-CLIP",)).values():
            typer.echo(f"\n{table}")
        for line in notes(results):
            typer.echo(line)
        typer.echo(f"\nWritten to {output}: results.json, results.csv, tables.md (all six methods), tables.tex")


@app.command("app")
def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to bind; any other lets others on the network in, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind.")] = 7860,
    device: Device = None,
    max_images: Annotated[int, typer.Option(min=1, help="Photos at a time.")] = 50,
    max_file_size: Annotated[float, typer.Option(min=0.001, help="Megabytes a file may have.")] = 20,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Pixels a photo may have; larger ones are refused before they are decoded.")
    ] = 50_000_000,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Show the page in the browser of this machine.")
    ] = True,
):
    """Serve a page that scores photos and shows where the defects are (extra: app).

    Uploads stay in a temporary folder that is removed at the end; nothing is sent anywhere.

    Examples:

    vip2clip app

    vip2clip app --model org/vip2clip --port 8000 --no-browser
    """
    from .app import launch

    launch(
        model,
        device,
        host=host,
        port=port,
        max_images=max_images,
        max_file_size=max_file_size,
        max_pixels=max_pixels,
        open_browser=browser,
    )


@app.command()
def calibrate(
    model: Model = None,
    normal: Annotated[
        Path | None, typer.Option(help="Folder of normal images that nothing was trained or chosen on.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(metavar="[NAME=]ROOT", help="Instead: data with labels, for the thresholds of the best F1."),
    ] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(help="With --normal: share of normal images that may be called anomalous.")
    ] = 0.01,
    recall: Annotated[
        float | None, typer.Option(help="With --labelled: share of what is anomalous to find, instead of the best F1.")
    ] = None,
    min_region_area: Annotated[
        float, typer.Option(help="With --normal: share of the image that a region has to cover to count.")
    ] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option(help="New folder for a calibrated copy (default: the checkpoint itself is changed)."),
    ] = None,
    tile_size: Annotated[
        int, typer.Option(min=0, help="See larger photos in tiles of this side in pixels; 0 for none.")
    ] = 0,
    tile_overlap: Annotated[float, typer.Option(help="Share of a tile that neighbours have in common.")] = 0.25,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the thresholds as JSON.")] = False,
):
    """Choose thresholds on images of one's own, and write them into a checkpoint.

    From normal images alone the rate of false alarms is known: on normal images like these at most the one asked for.

    Exit codes: 0 all is well, 1 it could not be done, 3 done, but some images could not be read or look anomalous.

    Examples:

    vip2clip calibrate --model checkpoint --normal photos/good --false-alarm-rate 0.01

    vip2clip calibrate --model checkpoint --labelled photos --recall 0.95 --output calibrated
    """
    from .calibration import calibrate as from_normal
    from .calibration import calibrate_labelled, save_calibration
    from .files import check_new_folder
    from .pipeline_anomaly_detection import AnomalyDetectionPipeline

    if (normal is None) == (labelled is None):
        raise ValueError("Expected either --normal, a folder of normal images, or --labelled, data with labels.")
    if normal is not None and not normal.is_dir():
        raise OSError(f"{str(normal)!r} is no folder; expected one with normal images.")
    if normal is not None and recall is not None:
        raise ValueError("--recall needs anomalous images: give --labelled instead of --normal.")
    if output is not None:
        check_new_folder(output)
    checkpoint = _checkpoint_or_bundled(model)
    if output is None and (model is None or not Path(checkpoint).is_dir()):
        what = "The checkpoint of the package" if model is None else f"{model!r}, a checkpoint on the Hub,"
        raise ValueError(f"{what} is not changed: name a new folder for a calibrated copy with --output.")
    options = {"tile_size": tile_size, "tile_overlap": tile_overlap}
    detector = AnomalyDetectionPipeline.from_pretrained(checkpoint, device=device, **options)
    progress = sys.stderr.isatty()
    if normal is not None:
        found = from_normal(detector, normal, false_alarm_rate, min_region_area=min_region_area, progress=progress)
    else:
        from .data.sources import DataSource

        source = DataSource.parse(labelled)
        found = calibrate_labelled(
            detector, source.load(), recall=recall, mask_threshold=source.mask_threshold, progress=progress
        )
    if not Path(checkpoint).is_dir():  # on the Hub: a folder with the same files
        from huggingface_hub import snapshot_download

        checkpoint = snapshot_download(checkpoint)
    folder = save_calibration(found, checkpoint, output)
    if as_json:
        summary = {name: value for name, value in found.content.items() if name not in ("image", "pixel")}
        for level in ("image", "pixel"):
            summary[level] = {name: value for name, value in found.content[level].items() if name != "scores"}
        summary.update(checkpoint=str(folder), suspicious=found.suspicious, unreadable=found.unreadable)
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        count = found.content["image"]["num_images"]
        typer.echo(f"image threshold {found.image_threshold:.6f}, pixel threshold {found.pixel_threshold:.6f}")
        typer.echo(f"from {count} images; written to {folder}: config.json, README.md")
    if found.suspicious or found.unreadable:
        raise typer.Exit(3)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the sheet of pictures and the fine-tuned checkpoint.")
    ] = Path("demo_output"),
    seed: Annotated[int, typer.Option(help="Of the generated pictures and of training.")] = 0,
):
    """Find and draw defects with the checkpoint of the package, fine-tune it, evaluate it: without network or GPU.

    Example: vip2clip demo --output demo_output
    """
    from .demo import run_demo

    run_demo(output, seed)


def main():
    """Entry point: errors that say what to do are printed without a traceback, with exit code 1."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # of loading: in a log they are only noise
    try:
        app()
    except (ImportError, OSError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
