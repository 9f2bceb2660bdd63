"""`vip2clip reproduce`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Json, print_json, shows_progress, usage_error
from .streams import say, say_error


def reproduce(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET...",
            help="What to reproduce: tables 1 2 3 4 5 6, figures 3 4 5 6 7, or all.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[str, typer.Option(help="Plan: paper, small, or a YAML or JSON file. See --print-plan.")] = "paper",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for everything. An interrupted run resumes.", show_default="reproduction-PLAN"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]ROOT",
            help="Folder of a dataset of the plan; with the plan small, your own datasets. Repeatable.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Train with this seed. Repeatable.", show_default="those of the plan"),
    ] = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the rows with their estimated time, and exit.")
    ] = False,
    list_plans: Annotated[bool, typer.Option("--list-plans", help="List the plans of the package, and exit.")] = False,
    print_plan: Annotated[
        bool, typer.Option("--print-plan", help="Print the file of the plan, to edit a copy, and exit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Reproduce tables and figures of the paper.

    Trains what a plan needs, evaluates it, and writes table4.md, .tex and .csv, and figure6.png and .pdf: laid out as
    in the paper, with the published value, yours, and the difference. Each distinct setting is trained once. If
    interrupted, run the same command again to resume. Several programs can work in the same folder.

    Exit codes: 0 success, 1 error, 2 wrong usage, 3 success, but datasets were not found or rows failed.

    \b
    Examples:
      vip2clip reproduce all --plan small
      vip2clip reproduce all --plan small --data parts --data screws
      vip2clip reproduce tables 1 4 figures 6 --data mvtec=MVTec --data visa=VisA --dry-run
      vip2clip reproduce --print-plan > plan.yaml
    """
    from ..reproduction.plan import PLANS, plan_path, read_plan

    if list_plans:
        say("\n".join(f"{name:8s} {text}" for name, text in PLANS.items()))
        return
    if print_plan:
        say(plan_path(plan).read_text(encoding="utf-8"), end="")
        return
    if not targets:
        raise usage_error("No table or figure is given; expected tables 1 2 3 4 5 6, figures 3 4 5 6 7, or all.")
    from ..reproduction.dry_run import describe_work
    from ..reproduction.outputs import write_outputs
    from ..reproduction.running import prepare
    from ..reproduction.work import parse_targets

    try:
        chosen = read_plan(plan, data or (), seed or ())
        parse_targets(targets)
    except ValueError as error:
        raise usage_error(str(error)) from error
    folder = output or Path(f"reproduction-{chosen.name}")
    reproduction = prepare(chosen, targets, folder, device=device, progress=shows_progress())
    if dry_run:
        described = describe_work(reproduction)
        if as_json:
            print_json(described)
        else:
            _print_work(described, folder)
        return
    reproduction.run()
    report = write_outputs(reproduction)
    if as_json:
        print_json(report)
    else:
        for name in report["tables"]:
            say((folder / name).read_text(encoding="utf-8"))
        if report["num_others"]:
            say(f"{report['num_others']} results of other rows or settings are kept in {folder}.")
        say(f"Written to {folder}: {', '.join(report['files'])}")
    for line in [*report["problems"], *report["downloads"]]:
        say_error(line)
    if report["problems"]:
        raise typer.Exit(3)


def _print_work(described: dict[str, Any], folder: Path) -> None:
    """Print the rows of a dry run."""
    from tabulate import tabulate

    rows = [
        [row["target"], row["setting"], row["dataset"], row["status"], duration(row["seconds"]), row["shared_with"]]
        for row in described["rows"]
    ]
    headers = ["target", "row", "dataset", "status", "time", "shared with"]
    say(tabulate(rows, headers, disable_numparse=True))
    say(
        f"\n{described['num_trainings']} trainings and {described['num_evaluations']} evaluations are left, about "
        f"{duration(described['seconds'])} on {described['device']} ({described['basis']}). Nothing was trained."
    )
    for line in described["downloads"]:
        say(line)


def duration(seconds: float | None) -> str:
    """
    Format a duration.

    Args:
        seconds (`float`, *optional*): seconds, or `None` if unknown.

    Returns:
        `str`: seconds, minutes or hours.
    """
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


__all__ = ["duration", "reproduce"]
