"""`vip2clip predict --output`: predict any number of photos into a folder."""

from pathlib import Path
from typing import Any

import typer

from .options import print_json, shows_progress
from .result_files import ResultFiles
from .streams import say, say_error


def predict_folder(
    source: str,
    model: str,
    output: Path | str,
    as_json: bool,
    bulk: dict[str, Any],
    options: dict[str, Any],
    files: ResultFiles,
) -> None:
    """
    Write the table of `predict --output` and print a summary.

    Args:
        source (`str`): folder or dataset.
        model (`str`): checkpoint folder or Hub id.
        output (`pathlib.Path` or `str`): folder of the table, or its URL.
        as_json (`bool`): whether to print the summary as JSON.
        bulk (`dict[str, Any]`): options that apply to --output only.
        options (`dict[str, Any]`): further arguments of [`predict_checkpoint`].
        files ([`ResultFiles`]): further files to write.

    Raises:
        OSError: if no photo can be read, or see [`predict_checkpoint`].
        ValueError: see [`predict_checkpoint`].
        typer.Exit: with code 3, if some photos could not be read.
    """
    from ..inference.images import find_source
    from ..inference.prediction import predict_checkpoint
    from ..utils.distributed import world
    from ..utils.outputs import check_output

    check_output("--output", output, [source, source.partition("=")[2]])
    files.check([source, source.partition("=")[2], output], from_folder=True)
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
    if files.wanted:
        from ..reporting.reading import read_predictions

        files.report(files.write(read_predictions(output)), say_error if as_json else say)
    if found["num_unreadable"] == found["num_images"]:
        raise OSError(f"None of the images in {source!r} could be read; see column 'error' of the table.")
    if found["num_unreadable"]:
        raise typer.Exit(3)


__all__ = ["predict_folder"]
