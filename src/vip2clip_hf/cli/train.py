"""`vip2clip train`."""

import logging
from typing import Annotated, Any

import typer

from ..utils.extras import require
from .options import print_json, shows_progress, usage_error
from .streams import say


def train(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG] [--NAME VALUE ...]")] = None,
) -> None:
    """Train adapters on datasets with defects."""
    argv = list(arguments or [])
    wants_help = not argv or bool({"--help", "-h", "--help-all"} & set(argv))
    from ..training.parsing import make_parser, parse_arguments

    if wants_help:
        say(make_parser(show_all="--help-all" in argv).format_help(), end="")
        raise typer.Exit(0 if argv else 2)
    require("train", "Training", "accelerate", "datasets", "scipy", "tabulate")
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr
    shows_progress()
    try:
        model_arguments, data_arguments, training_arguments = parse_arguments(argv)
    except ValueError as error:
        raise usage_error(str(error)) from error
    if training_arguments.process_index > 0:
        logging.getLogger().setLevel(logging.WARNING)  # print once
    repository = training_arguments.hub_model_id if training_arguments.push_to_hub else None
    token, private = training_arguments.hub_token, training_arguments.hub_private_repo
    if training_arguments.push_to_hub and repository is None:
        raise usage_error("--push_to_hub needs --hub_model_id org/name.")
    from ..training.run import run_training
    from ..utils.serialization import without_nan

    def check_access() -> None:
        if repository is not None:
            from ..hub.publishing import check_push_access

            check_push_access(repository, token=token, private=private)

    report = run_training(model_arguments, data_arguments, training_arguments, before_training=check_access)
    if training_arguments.process_index > 0:
        return
    folder = training_arguments.output_dir
    if repository is not None:
        from ..hub.publishing import push_checkpoint

        report["published"] = push_checkpoint(folder, repository, token=token, private=private)
    if data_arguments.json:
        print_json(without_nan({**report, "checkpoint": folder}))
        return
    for result in report["results"]:
        _print_result(result)
    say(f"Wrote the model and the results to {folder}")
    if "published" in report:
        say(f"Published as {report['published']}")


# Pass all options to the parser of transformers, which also prints the help.
TRAIN_SETTINGS: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}


def _print_result(result: dict[str, Any]) -> None:
    mean = result["mean"]
    names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "AUPRO"}
    say(f"{result['name']}: " + "   ".join(f"{title} {mean[name]:.3f}" for name, title in names.items()))
    for name, reason in mean["undefined"].items():
        say(f"  {name} is undefined: {reason}")
    for reason in result["trained_on"]:
        say(f"  not zero-shot: {reason}")
    for reason in result.get("chosen_on", ()):
        say(f"  {reason}")


__all__ = ["TRAIN_SETTINGS", "train"]
