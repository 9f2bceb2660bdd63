"""`vip2clip demo`."""

from pathlib import Path
from typing import Annotated

import typer

from ..utils.extras import require
from .options import Json, print_json, shows_progress
from .streams import say


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the sheet of results and the adapted checkpoint.")] = Path(
        "demo_output"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic defects of the report.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier demo.")] = False,
    as_json: Json = False,
) -> None:
    """Try the bundled checkpoint on example photos.

    Scores example photos zero-shot, adapts the checkpoint with photos of good parts, scores them again, and draws the
    results in one sheet. Runs offline on a CPU in under a minute.

    \b
    Example:
      vip2clip demo --output demo_output
    """
    require("train", "The demo", "accelerate", "datasets", "matplotlib", "scipy")
    from ..demo import run_demo
    from ..utils.serialization import without_nan

    shows_progress()
    if as_json:
        print_json(without_nan(run_demo(output, seed, say=lambda line: None, overwrite=overwrite)))
    else:
        run_demo(output, seed, say=say, overwrite=overwrite)


__all__ = ["demo"]
