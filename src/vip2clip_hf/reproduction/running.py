"""Reproduce tables and figures: train what is missing, evaluate, and write them. An interrupted run resumes."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.detector import Detector
from ..utils.extras import require
from ..utils.outputs import check_output
from .computing import Reproduction
from .datasets import PlanDatasets
from .feature_memory import FeatureMemory
from .method import checksum_of_backbone
from .outputs import write_outputs
from .plan_types import Plan
from .rivals import rivals_of
from .settings import SWITCHES
from .store import Store
from .work import needs_of, parse_targets, plan_work


GIGABYTE = 10**9


def prepare(
    plan: Plan,
    targets: Sequence[str],
    output: str | os.PathLike,
    *,
    detectors: Mapping[str, Callable[[], Detector]] | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Reproduction:
    """
    Find out what a reproduction needs. This creates the folder, writes generated datasets to it, and nothing else but
    what is known of the datasets.

    Args:
        plan, targets, output, detectors, device, progress: see [`reproduce`].

    Returns:
        [`Reproduction`]: the reproduction.

    Raises:
        ImportError, OSError, ValueError: see [`reproduce`].
    """
    require("train", "Reproducing the tables", "accelerate", "datasets", "scipy", "tabulate", "matplotlib")
    wanted, folder = parse_targets(targets), Path(output)
    store, data = Store(folder), PlanDatasets(plan, folder / "data")
    check_output("--output", folder, [root for root in plan.datasets.values() if Path(root).exists()])
    store.begin()
    known = store.remembered()
    readable = any(data.problem(name) is None for name in plan.datasets)
    backbone = checksum_of_backbone(plan) if readable else known.get("backbone", {}).get(plan.backbone, "")
    cache = store.folder / "cache" if plan.feature_cache else None
    rivals: Mapping[str, Callable[[], Detector]] = rivals_of(
        plan, backbone, device=device, cache=cache, progress=progress
    )
    check_detector_names(detectors or {}, plan)
    measured = [name for name in rivals if name not in (detectors or {})]
    detectors = {**rivals, **(detectors or {})}
    needs = needs_of(plan, wanted, data, list(detectors), measured)
    described = {name: _describe(create()) for name, create in detectors.items()}
    work = plan_work(plan, needs, data, backbone, known.get("fingerprints", {}), described)
    store.remember(
        {
            "fingerprints": {**known.get("fingerprints", {}), **data.fingerprints},
            "backbone": {**known.get("backbone", {}), plan.backbone: backbone},
        }
    )
    size = int(plan.evaluation["feature_memory"] * GIGABYTE)
    memory = FeatureMemory(size) if size else None
    return Reproduction(plan, wanted, store, data, work, needs, detectors, device, progress, memory=memory)


def check_detector_names(names: Iterable[str], plan: Plan) -> None:
    """Refuse names of detectors that are names of settings: their cells would be mixed."""
    settings = {*SWITCHES, *map("/".join, plan.state_words), *(f"top_k={count}" for count in plan.top_k)}
    for name in names:
        if name in settings:
            raise ValueError(f"A detector is named {name!r}, as a setting of the tables; expected another name.")


def _describe(detector: Any) -> dict[str, Any]:
    """Settings of a detector of the user."""
    return {
        "trained": hasattr(detector, "train"),
        "kept": hasattr(detector, "load"),
        "settings": getattr(detector, "settings", None),
    }


def reproduce(
    plan: Plan,
    targets: Sequence[str],
    output: str | os.PathLike,
    *,
    detectors: Mapping[str, Callable[[], Detector]] | None = None,
    device: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Reproduce tables and figures of the paper with a plan.

    Everything that is finished in the folder is used again. To resume an interrupted run, call the function again.
    Several programs can work in the same folder: each trains and evaluates what no other program does.

    Args:
        plan ([`Plan`]):
            The plan, from [`read_plan`].
        targets (`Sequence[str]`):
            Tables and figures, such as `["table 4", "figure 6"]`, `["tables"]` or `["all"]`.
        output (`str` or `os.PathLike`):
            Folder to write to. It must be new or empty, or contain a reproduction.
        detectors (`Mapping[str, Callable[[], Detector]]`, *optional*):
            Other detectors for Tables 1 and 2 and Figure 4, by name: functions without arguments that create a
            [`Detector`]. They are added to the `methods` of the plan, and replace one with the same name. If a
            detector has a method `train`, it is trained like ViP²-CLIP. If it also has a method `load(folder)`,
            `train` writes its weights to its folder, and they are kept; otherwise, Figure 4 trains it again. If it
            has an attribute `settings`, a change of its value computes its rows again.
        device (`str`, *optional*):
            Device. By default, an accelerator if available, otherwise the CPU.
        progress (`bool`, defaults to `False`):
            Whether to show progress bars.

    Returns:
        `dict`: `files` (written tables and figures), `problems` (a line for each dataset that was not found and each
        row that failed), `downloads` (where to get missing datasets) and `num_others` (results of other settings in
        the folder, which are kept).

    Raises:
        ImportError: if a package of the extra `train` is not installed.
        OSError: if the backbone is not found, or the folder contains something else.
        ValueError: if a target is unknown.
    """
    reproduction = prepare(plan, targets, output, detectors=detectors, device=device, progress=progress)
    reproduction.run()
    return write_outputs(reproduction)


__all__ = ["check_detector_names", "prepare", "reproduce"]
