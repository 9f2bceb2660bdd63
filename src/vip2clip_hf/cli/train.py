"""`vip2clip train`."""

import json
import logging
import os
from typing import Annotated, Any

import typer

from ..utils.extras import require
from .options import print_json, shows_progress, usage_error
from .streams import say


def train(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG or PHOTOS...] [--NAME VALUE ...]")] = None,
) -> None:
    """Train adapters on datasets with defects."""
    argv = list(arguments or [])
    wants_help = not argv or bool({"--help", "-h", "--help-all"} & set(argv))
    if wants_help and "--help-all" not in argv:
        from ..training.help import stored_help

        say(stored_help(), end="")
        raise typer.Exit(0 if argv else 2)
    if "--list-recipes" in argv:
        from ..training.named_recipes import RECIPES

        say("\n".join(f"{name:11s} {text}" for name, text in RECIPES.items()))
        raise typer.Exit
    from ..training.parsing import given_arguments, make_parser, parse_arguments

    if wants_help:
        say(make_parser(show_all=True).format_help(), end="")
        raise typer.Exit
    argv = _photos_first(argv)
    dry_run, print_config = "--dry-run" in argv, "--print-config" in argv
    argv = [word for word in argv if word not in ("--dry-run", "--print-config")]
    require("train", "Training", "accelerate", "datasets", "scipy", "tabulate")
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr
    shows_progress()
    try:
        if print_config:
            say(json.dumps(given_arguments(argv), indent=2))
            raise typer.Exit
        model_arguments, data_arguments, training_arguments = parse_arguments(argv)
    except ValueError as error:
        raise usage_error(str(error)) from error
    kind = None
    if model_arguments.method != "vip2clip":
        from ..baselines.training import training_kind

        if "perception_learning_rate" in given_arguments(argv):
            raise usage_error("--perception_learning_rate is set, but only ViP²-CLIP has it; omit it.")
        try:
            kind = training_kind(model_arguments.method)
        except ValueError as error:
            raise usage_error(str(error)) from error
    if dry_run:
        from ..training.dry_run import plan_training

        plan = plan_training(model_arguments, data_arguments, training_arguments, kind=kind)
        if data_arguments.json:
            print_json(plan)
        else:
            _print_plan(plan, training_arguments)
        return
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

    report = run_training(model_arguments, data_arguments, training_arguments, before_training=check_access, kind=kind)
    if training_arguments.process_index > 0:
        return
    folder = training_arguments.output_dir
    if repository is not None:
        from ..baselines.methods import find_method
        from ..hub.publishing import push_checkpoint

        name = "ViP²-CLIP" if kind is None else find_method(model_arguments.method).name
        message = f"Upload {name} checkpoint"
        report["published"] = push_checkpoint(folder, repository, token=token, private=private, commit_message=message)
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


def _photos_first(argv: list[str]) -> list[str]:
    """Read folders before the first option as the training data, as in the other commands: `train PHOTOS`."""
    count = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    if not argv[:count] or not all(os.path.isdir(word.rpartition("=")[2]) for word in argv[:count]):
        return argv
    if "--train-data" in {word.partition("=")[0].replace("_", "-") for word in argv[count:]}:
        raise usage_error("PHOTOS and --train_data are both given; expected one of them.")
    return ["--train_data", *argv[:count], *argv[count:]]


def _print_plan(plan: dict[str, Any], arguments: Any) -> None:
    for kind, title in (("train_data", "train on"), ("eval_data", "evaluate on")):
        for one in plan[kind]:
            counts = (
                f"{one['num_normal']} normal and {one['num_anomalous']} anomalous images, {one['num_masks']} masks"
            )
            say(f"{title} {one['name']}: {counts}")
    say(f"weights: {plan['trained_weights']:,} trained, {plan['frozen_weights']:,} frozen")
    steps = f"{plan['num_steps']} of {plan['images_per_step']} images ({plan['num_epochs']:g} epochs)"
    say(f"steps: {steps} on {plan['device']}, {plan['step_seconds']:.3g} s each")
    if plan["cache_bytes"] is not None:
        size = f"{plan['cache_bytes'] / 1e9:.2g} GB in {arguments.cache_features}"
        say(f"feature cache: {size}, {plan['cache_image_seconds']:.3g} s for each image")
    say(f"memory: {plan['memory_bytes'] / 1e9:.2g} GB in the measured steps")
    say(f"estimated time: {_duration(plan['seconds'])}, without evaluation. Nothing was trained or written.")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


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
