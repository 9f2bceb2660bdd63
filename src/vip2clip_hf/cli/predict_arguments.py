"""Which options of `vip2clip predict` go together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.urls import is_remote, local_path
from .detector_options import check_references
from .options import usage_error
from .result_files import ResultFiles


ENGINES = ("accelerate", "ray")


def check_arguments(
    source: Sequence[str],
    *,
    output: Path | str | None,
    heatmap: Path | None,
    regions: bool,
    references: Path | None,
    no_references: bool,
    bulk: Mapping[str, Any],
    files: ResultFiles,
) -> None:
    """
    Check the arguments of `vip2clip predict` that depend on each other.

    Args:
        source (`Sequence[str]`): photos, folders or a dataset.
        output, heatmap, regions, references, no_references: options of the command. The output can be a URL.
        bulk (`Mapping[str, Any]`): options that apply to --output only, by name. `overwrite` and `append` also apply
            to the files.
        files ([`ResultFiles`]): files to write.

    Raises:
        OSError: if the folder of references does not exist.
        typer.BadParameter: if two options exclude each other.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in bulk.items() if value not in (None, False, [])]
    if heatmap is not None or files.wanted:
        given = [name for name in given if name != "--overwrite"]
    if files.csv is not None:
        given = [name for name in given if name != "--append"]
    elif files.append and output is None:
        raise usage_error("--append can only be used with --output FOLDER or --csv FILE.")
    if files.append and files.overwrite:
        raise usage_error("--append and --overwrite exclude each other; pass one of them.")
    if files.margin is not None and files.sort is None:
        raise usage_error("--unsure-margin can only be used with --sort FOLDER.")
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
    _check_stores(source, output, files)
    if bulk["engine"] not in (None, *ENGINES):
        raise usage_error(f"--engine is {bulk['engine']!r}; expected {' or '.join(ENGINES)}.")
    if bulk["num_actors"] is not None and bulk["engine"] != "ray":
        raise usage_error("--num-actors can only be used with --engine ray.")
    check_references(references, no_references)


def path_or_url(text: str) -> Any:
    """
    Parse a path that can be the URL of a store.

    Args:
        text (`str`): argument of the command line.

    Returns:
        `pathlib.Path`, or `str` for a URL: a path would lose a slash of `s3://`.
    """
    return text if is_remote(text) else Path(local_path(text))


def _check_stores(source: Sequence[str], output: Path | str | None, files: ResultFiles) -> None:
    """Check what is read and written in a store."""
    remote = next(filter(is_remote, source), None)
    if remote is not None and output is None:
        raise usage_error(f"{remote!r} is in a store; it can only be predicted with --output FOLDER.")
    if files.wanted and isinstance(output, str):
        raise usage_error(
            f"--csv, --xlsx and --sort cannot be used with --output {output!r}, which is in a store; predict into a "
            "local folder."
        )
    if files.sort is not None and remote is not None:
        raise usage_error(f"--sort cannot be used with {remote!r}, which is in a store; download the photos first.")


__all__ = ["check_arguments", "path_or_url"]
