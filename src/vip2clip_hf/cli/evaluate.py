"""`vip2clip evaluate`."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from .model_argument import check_model
from .options import (
    AnomalousLabel,
    Backbone,
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
    NoReferences,
    NormalLabel,
    Page,
    SkipUnreadable,
    class_names,
    mask_options,
    one_of,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say, say_error


OWN_METHOD = "vip2clip"


def evaluate(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTOS...",
            help="Labelled datasets: a benchmark as NAME=ROOT (mvtec=path/to/MVTec), or a folder, table or Hub id.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder for results, tables and sheets. An interrupted run resumes.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or Hub id of any method.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method: vip2clip, clip, winclip, april-gan, anomalyclip or adaclip.",
            show_default="that of the checkpoint",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="CLIP backbone of a method without training, instead of --model: folder, Hub id or bundled.",
            show_default=False,
        ),
    ] = None,
    class_name: ClassName = None,
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "test",
    category: Annotated[
        list[str] | None, typer.Option(help="Evaluate this category only. Repeatable.", show_default=False)
    ] = None,
    normal_label: NormalLabel = None,
    anomalous_label: AnomalousLabel = None,
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
    mask_threshold: MaskThreshold = None,
    mask_channel: MaskChannel = None,
    mask_invert: MaskInvert = None,
    mask_orientation: MaskOrientation = None,
    keep_small_regions: KeepSmallRegions = None,
    sheets: Annotated[int, typer.Option(min=0, help="Example images per category in the sheets; 0 for none.")] = 8,
    sheet_range: Annotated[
        tuple[float, float], typer.Option(help="Anomaly map values at the ends of the colour scale in the sheets.")
    ] = (0.0, 1.0),
    maps: Annotated[bool, typer.Option("--maps", help="Save all anomaly maps as float16.")] = False,
    bit_depth: BitDepth = None,
    page: Page = None,
    skip_unreadable: SkipUnreadable = False,
    num_references: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Also evaluate with this number of normal photos per category. Repeatable.", show_default=False
        ),
    ] = None,
    reference_seed: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Seed of the draw of the references. Repeatable.", show_default="0"),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos of good parts, or with one subfolder per category. With --num-references, they are "
            "drawn from it.",
            show_default="references of the checkpoint; with --num-references, the split train",
        ),
    ] = None,
    no_references: NoReferences = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier evaluation in OUTPUT.")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Evaluate a checkpoint or a method on labelled datasets.

    Prints the tables of the paper with your results next to the published ones. Writes results.json, results.csv,
    tables.md, tables.tex, the score of each image, and sheets of example images. If interrupted, run the same command
    again to resume. To use several processes, run accelerate launch training/evaluate.py with the same arguments.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but all image metrics or all pixel metrics of a dataset
    are undefined, or images could not be read.

    \b
    Examples:
      vip2clip evaluate mvtec=MVTec visa=VisA --model checkpoint --output results
      vip2clip evaluate photos --model org/vip2clip --output results --maps
      vip2clip evaluate mvtec=MVTec --model checkpoint --output results --num-references 1 --num-references 4
      vip2clip evaluate photos --method winclip --clip openai/clip-vit-large-patch14-336 --output winclip
    """
    from ..baselines.evaluating import evaluate_method, title_of
    from ..baselines.methods import find_method
    from ..data.sources import DataSource
    from ..evaluation.reference_sets import ReferenceChoice
    from ..evaluation.reference_tables import reference_table
    from ..evaluation.reports import settings_lines
    from ..evaluation.runner import evaluate_checkpoint
    from ..evaluation.tables import category_table, comparison_tables, notes
    from ..utils.distributed import world
    from ..utils.files import name_of
    from ..utils.outputs import check_output
    from ..utils.serialization import without_nan

    def show(result: dict[str, Any]) -> None:
        say(f"\n{result['name']}, in percent\n{category_table(result)}")

    check_model("evaluate", model, photos, " --output FOLDER")
    options = mask_options(mask_threshold, mask_channel, mask_invert, mask_orientation, keep_small_regions)
    if no_references and (num_references or references):
        raise usage_error("--no-references is given with other references; expected one of them.")
    if reference_seed and not num_references:
        raise usage_error("--reference-seed is given without --num-references; expected the number of references.")
    choice = ReferenceChoice(
        tuple(dict.fromkeys(num_references or ())),
        tuple(dict.fromkeys(reference_seed or (0,))),
        None if references is None else str(references),
        not no_references,
    )
    key = choose_method(method, model, clip)
    names = class_names(class_name)
    if key is None and names is not None:
        raise usage_error("--class-name is given, but ViP²-CLIP does not use class names; remove it.")
    if name is None:
        name = name_of(str(model)) if key is None else title_of(key)
    sources = [DataSource.parse(text, split, category, options, normal_label, anomalous_label) for text in photos]
    check_output(
        "--output", output, [*(source.root for source in sources), *([choice.folder] if choice.folder else [])]
    )
    evaluate_any: Any = evaluate_checkpoint
    subject: tuple[Any, ...] = (model,)
    own: dict[str, Any] = {}
    if key is not None:
        evaluate_any, subject = evaluate_method, (key,)
        own = {"clip": clip, "checkpoint": model, "class_name": names}
    results = evaluate_any(
        *subject,
        sources,
        output,
        **own,
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
        save_maps=maps,
        overwrite=overwrite,
        bit_depth=bit_depth,
        page=page,
        skip_unreadable=skip_unreadable,
        references=choice,
        progress=shows_progress(),
        on_result=None if as_json else show,
    )
    if world()[0] > 0:
        return
    if as_json:
        print_json(without_nan(results))
    else:
        published = "ViP²-CLIP" if key is None else find_method(key).name
        for table in comparison_tables(results, name, "simple", methods=(published,)).values():
            say(f"\n{table}")
        if (few := reference_table(results, name, "simple")) is not None:
            say(f"\nWith k references per category\n{few}")
        for line in [*settings_lines(results), *notes(results)]:
            say(line)
        say(f"\nWritten to {output}: results.json, results.csv, tables.md (all six methods), tables.tex")
    problems = [line for result in results for line in problems_of(result)]
    for line in problems:
        say_error(line)
    if problems:
        raise typer.Exit(3)


def choose_method(method: str | None, model: str | None, clip: str | None) -> str | None:
    """
    Find the method of an evaluation.

    Args:
        method (`str`, *optional*): name of the method.
        model (`str`, *optional*): checkpoint folder or Hub id.
        clip (`str`, *optional*): CLIP backbone.

    Returns:
        `str`, *optional*: one of `vip2clip_hf.baselines.methods.METHODS`. `None` for ViP²-CLIP.

    Raises:
        typer.BadParameter: if the method is unknown, an option is missing, or they do not go together.
    """
    from ..baselines.detector_loading import method_of_checkpoint
    from ..baselines.methods import METHODS

    if method is not None and method not in (OWN_METHOD, *METHODS):
        raise usage_error(f"--method is {method!r}; expected {OWN_METHOD}, {', '.join(METHODS)}.")
    if model is not None and clip is not None:
        raise usage_error(
            "--model and --clip are both given; expected one of them. For the backbone of an adapters-only "
            "checkpoint, use --backbone."
        )
    if model is not None:
        found = method_of_checkpoint(model)
        if method is not None and found != (None if method == OWN_METHOD else method) and found is not None:
            raise usage_error(f"--model {model!r} is a checkpoint of {found}; expected one of {method}.")
        return found if method in (None, OWN_METHOD) else method
    if method in (None, OWN_METHOD):
        raise usage_error("Missing option '--model'.")
    if METHODS[str(method)].trained:
        raise usage_error(f"{METHODS[str(method)].name} needs training; expected a checkpoint (--model).")
    if clip is None:
        raise usage_error("Missing option '--clip' or '--model'.")
    return method


def problems_of(result: dict[str, Any]) -> list[str]:
    """
    Find what makes a result incomplete.

    Args:
        result (`dict`): result of a dataset. For a benchmark of the paper, the metrics that its images cannot have are
            not a problem.

    Returns:
        `list[str]`: a sentence for each level without metrics, and one if images could not be read.
    """
    from ..data.benchmarks.registry import BENCHMARKS
    from ..evaluation.category_metrics import METRICS

    benchmark = BENCHMARKS.get(result.get("benchmark") or "")
    absent = set()
    if benchmark is not None:
        absent = {level for level, has in (("image", benchmark.normal), ("pixel", benchmark.has_masks)) if not has}
    found = []
    for level in ("image", "pixel"):
        names = [metric for metric in METRICS if metric.startswith(f"{level}_")]
        if level not in absent and all(math.isnan(result["mean"][metric]) for metric in names):
            reasons = dict.fromkeys(result["mean"]["undefined"].get(metric, "no images") for metric in names)
            found.append(f"{result['name']}: all {level} metrics are undefined: {'; '.join(reasons)}.")
    if result.get("unreadable"):
        found.append(f"{result['name']}: {len(result['unreadable'])} images could not be read.")
    return found


__all__ = ["OWN_METHOD", "choose_method", "evaluate", "problems_of"]
