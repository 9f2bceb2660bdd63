"""`vip2clip push`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, print_json, usage_error
from .streams import say


def push(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder.")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Repository on the Hub, such as org/name.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of a new repository.",
            show_default="public, or what your organization sets",
        ),
    ] = None,
    with_endpoint: Annotated[
        bool,
        typer.Option(
            "--with-endpoint",
            help="Also write and publish handler.py and requirements.txt, for Hugging Face Inference Endpoints.",
        ),
    ] = False,
    endpoint_requirement: Annotated[
        str | None,
        typer.Option(
            metavar="REQUIREMENT",
            help="What pip installs in the endpoint, such as the address of a wheel.",
            show_default="this version of vip2clip_hf, from PyPI",
        ),
    ] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload ViP²-CLIP checkpoint",
    as_json: Json = False,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub.

    Uploads the files of the checkpoint, and no others in the folder. Log in first with hf auth login, or set HF_TOKEN.

    \b
    Examples:
      vip2clip push checkpoint org/vip2clip-part --private
      vip2clip push checkpoint org/vip2clip-part --with-endpoint
    """
    if endpoint_requirement is not None and not with_endpoint:
        raise usage_error("--endpoint-requirement can only be used with --with-endpoint.")
    if not checkpoint.is_dir():
        raise OSError(f"{str(checkpoint)!r} is not a folder; expected a checkpoint folder.")
    from huggingface_hub import HfApi

    from ..hub.publishing import push_checkpoint

    repo_id = push_checkpoint(
        checkpoint,
        repository,
        private=private,
        commit_message=message,
        with_endpoint=with_endpoint,
        endpoint_requirement=endpoint_requirement,
    )
    url = f"{HfApi().endpoint}/{repo_id}"
    if as_json:
        print_json({"repository": repo_id, "url": url, "with_endpoint": with_endpoint})
        return
    say(f"Published {url}")
    if with_endpoint:
        say("To create an endpoint from it, see docs/endpoints.md.")


__all__ = ["push"]
