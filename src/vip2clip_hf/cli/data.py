"""`vip2clip data`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    AnomalousLabel,
    BitDepth,
    Json,
    MaskChannel,
    MaskInvert,
    MaskOrientation,
    MaskThreshold,
    NormalLabel,
    Page,
    mask_options,
    parse_pair,
    print_json,
    shows_progress,
    usage_error,
)
from .streams import say, say_error


if TYPE_CHECKING:
    from ..data.checks import DataCheck
    from ..data.index import DataIndex


def data(
    photos: Annotated[
        str, typer.Argument(metavar="PHOTOS", help="Folder, table (CSV, JSONL, Parquet), meta.json or Hub id.")
    ],
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Read PHOTOS as this benchmark of the paper: mvtec, visa, ...", show_default="none, your own data"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to report on.")] = "test",
    category: Annotated[
        list[str] | None, typer.Option(help="Report on this category only. Repeatable.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of the folder: tree, classes, ...", show_default="detected")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN", help="Name of a column in your table, such as image=file_name. Repeatable."
        ),
    ] = None,
    normal_label: NormalLabel = None,
    anomalous_label: AnomalousLabel = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Open all images and masks to find damaged files, wrong sizes and empty masks."),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with code 1 if anything is left out or guessed, or if there are warnings."
        ),
    ] = False,
    mask_threshold: MaskThreshold = None,
    mask_channel: MaskChannel = None,
    mask_invert: MaskInvert = None,
    mask_orientation: MaskOrientation = None,
    bit_depth: BitDepth = None,
    page: Page = None,
    as_json: Json = False,
    synthetic: Annotated[
        bool,
        typer.Option("--synthetic", help="First generate a synthetic dataset with masks in PHOTOS, a new folder."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of --synthetic and --write-thirds.")] = 0,
    write_thirds: Annotated[
        Path | None,
        typer.Option(
            help="First write the official KolektorSDD images in PHOTOS to this new folder in thirds, as in the paper."
        ),
    ] = None,
) -> None:
    """Summarize a dataset.

    Prints layout, counts, masks, ignored files, licence and citation.

    Exit codes: 0 success, 1 error, or with --strict anything left out or guessed, 2 wrong usage, 3 --check found
    problems.

    \b
    Examples:
      vip2clip data photos
      vip2clip data MVTec --benchmark mvtec --check
      vip2clip data generated --synthetic
    """
    from ..data.loading import index_benchmark, index_folder

    root = photos
    for option, value in (("--benchmark", benchmark), ("--write-thirds", write_thirds)):
        if value is not None and (column or normal_label or anomalous_label):
            raise usage_error(f"--column, --normal-label and --anomalous-label apply to your own data; omit {option}.")
    options = mask_options(mask_threshold, mask_channel, mask_invert, mask_orientation)
    if not check and any(value is not None for value in options.columns().values()):
        raise usage_error("--mask-... options apply to opened masks; add --check.")
    progress = shows_progress()
    if synthetic:
        from ..data.synthetic.dataset import write_dataset

        write_dataset(root, num_train=8, seed=seed)
    if write_thirds is not None:
        from ..data.kolektor_thirds import write_kolektor_thirds

        root = str(write_kolektor_thirds(root, write_thirds, seed=seed, progress=progress))
        benchmark = "ksdd"
    if benchmark is not None:
        index = index_benchmark(benchmark, root, split, category, layout=layout)
    else:
        pairs = (parse_pair(text, "--column", "NAME=COLUMN", "image=file_name") for text in column or [])
        columns = dict(pairs) or None
        index = index_folder(
            root, split, category, layout=layout, columns=columns, normal_labels=normal_label or None,
            anomalous_labels=anomalous_label or None,
        )  # fmt: skip
    found = None
    if check:
        from ..data.checks import check_data

        found = check_data(index, progress=progress, mask_options=options, bit_depth=bit_depth, page=page)
    if as_json:
        content = index.report.to_dict()
        if found is not None:
            content["check"] = found.to_dict()
        print_json(content)
    else:
        say(index.report)
        if found is not None:
            say(f"\n{found}")
    if strict and (reasons := _strict_reasons(index, found)):
        say_error(f"--strict: {'; '.join(reasons)}")
        raise typer.Exit(1)
    if found is not None and found.problems:
        raise typer.Exit(3)


def _strict_reasons(index: "DataIndex", check: "DataCheck | None") -> list[str]:
    """What was left out or guessed."""
    from ..data.checks import DUPLICATE
    from ..data.index import OTHER_FILES, OUTSIDE_IMAGES
    from ..data.layouts.base import ANOTHER_COPY, NO_CATEGORY
    from ..data.listing import has_image_extension

    reasons = list(index.warnings)
    known = OTHER_FILES if index.benchmark is None else (*OTHER_FILES, ANOTHER_COPY, NO_CATEGORY)
    if OUTSIDE_IMAGES not in reasons:
        for reason, paths in index.ignored.items():
            if reason not in known and reason not in reasons and any(map(has_image_extension, paths)):
                reasons.append(reason)
    if check is not None:
        reasons += [*check.warnings, *(kind for kind in check.notes if kind != DUPLICATE)]
    return reasons


__all__ = ["data"]
