"""Plans: what to train and evaluate for the tables and figures of the paper, read from YAML or JSON."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..baselines.methods import METHODS, find_method
from ..data.sources import DataSource
from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig
from ..training.named_recipes import RECIPES
from .plan_types import (
    EFFICIENCY_DEFAULTS,
    EVALUATION_DEFAULTS,
    GENERATED,
    GENERATED_DEFAULTS,
    LEAVE_ONE_OUT,
    Direction,
    Plan,
)
from .plan_values import (
    check_keys,
    check_names,
    check_types,
    read_methods,
    read_numbers,
    read_root,
    read_row_names,
    read_words,
)


_FOLDER = Path(__file__).with_name("plans")
# Plans of the package.
PLANS = {
    "paper": "Tables 1 to 6 and Figures 3 to 7 with CLIP ViT-L/14@336px and the 15 benchmarks",
    "small": "the same in minutes on two CPU cores, with the bundled backbone and generated images or your own",
}
# Of ViP²-CLIP. Those of the other methods are in `methods`.
_RECIPES = [name for name in RECIPES if name not in METHODS]
_REAL = ("fpr_limit", "feature_memory")
_CAN_BE_ZERO = ("num_workers", "num_normal", "num_anomalous")


def plan_path(name: str | os.PathLike) -> Path:
    """
    Return the file of a plan.

    Args:
        name (`str` or `os.PathLike`): name of a plan of the package, one of `PLANS`, or a file.

    Returns:
        `pathlib.Path`: the file.

    Raises:
        OSError: if there is neither such a plan nor such a file.
    """
    if str(name) in PLANS:
        return _FOLDER / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        raise OSError(f"Plan {str(name)!r} not found; expected {', '.join(PLANS)} or a YAML or JSON file.")
    return path


def read_plan(name: str | os.PathLike, data: Sequence[str] = (), seeds: Sequence[int] = ()) -> Plan:
    """
    Read a plan.

    Args:
        name (`str` or `os.PathLike`):
            Name of a plan of the package (`"paper"`, `"small"`), or a YAML or JSON file.
        data (`Sequence[str]`, *optional*):
            Datasets as `[NAME=]ROOT`. With the protocol `leave-one-out`, they replace those of the plan. Otherwise
            they set the folders of datasets of the plan.
        seeds (`Sequence[int]`, *optional*):
            Seeds that replace those of the plan.

    Returns:
        [`Plan`]: the plan.

    Raises:
        OSError: if the file does not exist.
        ValueError: if the file is not valid, or a key or value is not allowed. The message contains the nearest key.
    """
    path = plan_path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a valid YAML or JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains a {type(content).__name__}; expected an object with the keys of a plan.")
    return make_plan(content, path.stem, data, seeds)


def make_plan(
    content: Mapping[str, Any], name: str = "plan", data: Sequence[str] = (), seeds: Sequence[int] = ()
) -> Plan:
    """
    Create a plan from the content of a plan file.

    Args:
        content (`Mapping[str, Any]`): the content.
        name (`str`, defaults to `"plan"`): name of the plan.
        data, seeds: see [`read_plan`].

    Returns:
        [`Plan`]: the plan.

    Raises:
        ValueError: see [`read_plan`].
    """
    names = [one.name for one in dataclasses.fields(Plan) if one.name != "name"]
    check_keys("the plan", content, names)
    for required in ("backbone", "datasets", "recipe"):
        if not content.get(required):
            raise ValueError(f"{required} is missing from the plan; expected {_EXPECTED[required]}.")
    values = {key: value for key, value in content.items() if value is not None}
    for key, kind in _TYPES.items():
        if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool)):
            raise ValueError(f"{key} is {values[key]!r}; expected {_EXPECTED[key]}.")
    datasets = {str(one): read_root(str(one), root) for one, root in values["datasets"].items()}
    left_out = values.get("protocol", LEAVE_ONE_OUT) == LEAVE_ONE_OUT
    if data:
        datasets = _with_data(datasets, data, left_out)
        if left_out:
            values.pop("ablations", None)
            values["efficiency"] = {**values.get("efficiency", {}), "dataset": None}
    plan = Plan(
        name=name,
        backbone=os.path.expanduser(values["backbone"]),
        datasets=datasets,
        recipe=values["recipe"],
        training=values.get("training", {}),
        model=values.get("model", {}),
        seeds=read_numbers("seeds", list(seeds) or values.get("seeds", [111]), 0, 2**32 - 1),
        protocol=_protocol(values.get("protocol", LEAVE_ONE_OUT), datasets),
        ablations=_known("ablations", values.get("ablations", list(datasets)), datasets),
        top_k=read_numbers("top_k", values.get("top_k", Plan.top_k), 1),
        state_words=read_words(values.get("state_words", Plan.state_words)),
        rows={str(table): read_row_names(str(table), found) for table, found in values.get("rows", {}).items()},
        generated=_group("generated", values, GENERATED_DEFAULTS),
        efficiency=_group("efficiency", values, EFFICIENCY_DEFAULTS),
        evaluation=_group("evaluation", values, EVALUATION_DEFAULTS),
        methods=read_methods(values.get("methods", {})),
        pictures=read_numbers("pictures", [values.get("pictures", 2)], 1)[0],
        feature_cache=values.get("feature_cache", True),
    )
    _check(plan)
    return plan


_EXPECTED = {
    "backbone": "the folder or Hub id of a CLIP checkpoint, or 'bundled'",
    "datasets": "the folder of each dataset by name",
    "recipe": f"one of {', '.join(_RECIPES)}",
    "training": "training arguments by name",
    "model": "fields of ViP2ClipConfig by name",
    "rows": "lists of settings by number of a table",
    "methods": f"settings by name of a method: {', '.join(METHODS)}",
    **dict.fromkeys(("generated", "efficiency", "evaluation"), "settings by name"),
}
_TYPES: dict[str, type] = {
    "backbone": str, "recipe": str,
    **dict.fromkeys(("datasets", "training", "model", "rows", "methods"), dict),
    **dict.fromkeys(("generated", "efficiency", "evaluation"), dict),
}  # fmt: skip


def _check(plan: Plan) -> None:
    from ..training.arguments import ViP2ClipTrainingArguments
    from .efficiency import VARIANTS
    from .settings import rows_of

    check_keys("recipe", [plan.recipe], _RECIPES)
    check_keys("model", plan.model, [one.name for one in dataclasses.fields(ViP2ClipConfig) if one.init])
    allowed = [one.name for one in dataclasses.fields(ViP2ClipTrainingArguments) if one.init]
    check_keys("training", plan.training, allowed)
    check_types("training", plan.training, ViP2ClipTrainingArguments)
    check_types("model", plan.model, ViP2ClipConfig)
    check_names(plan.datasets)
    if not isinstance(plan.feature_cache, bool):
        raise ValueError(f"feature_cache is {plan.feature_cache!r}; expected true or false.")
    for key, one in plan.methods.items():
        config = find_method(key).model_class.config_class
        check_keys(f"methods.{key}.model", one["model"], [field.name for field in dataclasses.fields(config)])
        check_types(f"methods.{key}.model", one["model"], config)
        check_keys(f"methods.{key}.training", one.get("training", {}), allowed)
        check_types(f"methods.{key}.training", one.get("training", {}), ViP2ClipTrainingArguments)
    own = {"output_dir", "seed", "cache_features", "resume_from_checkpoint", "push_to_hub", "eval_strategy"}
    for name in sorted(
        own & {*plan.training, *(name for one in plan.methods.values() for name in one.get("training", ()))}
    ):
        raise ValueError(f"training contains {name!r}, which the plan sets itself; remove it.")
    tables = {number: rows_of(number, plan) for number in ("4", "5", "6")}
    check_keys("rows", plan.rows, list(tables))
    for number, names in plan.rows.items():
        check_keys(f"rows of table {number}", names, tables[number])
    if (chosen := plan.efficiency["dataset"]) is not None:
        _known("efficiency.dataset", [chosen], plan.datasets)
    variants = plan.efficiency["variants"]
    if not isinstance(variants, list) or not variants:
        raise ValueError(f"efficiency.variants is {variants!r}; expected a list of {', '.join(map(repr, VARIANTS))}.")
    check_keys("efficiency.variants", variants, list(VARIANTS))
    convention = plan.evaluation["aupro_convention"]
    if convention not in ("exact", "release"):
        raise ValueError(f"evaluation.aupro_convention is {convention!r}; expected 'exact' or 'release'.")
    if not 0 < plan.evaluation["fpr_limit"] <= 1:
        found = plan.evaluation["fpr_limit"]
        raise ValueError(f"evaluation.fpr_limit is {found!r}; expected a number greater than 0, at most 1.")


def _with_data(datasets: dict[str, str], data: Sequence[str], replace: bool) -> dict[str, str]:
    """Set the folders of datasets."""
    parsed = [DataSource.parse(text) for text in data]
    names = [one.name for one in parsed]
    if len(set(names)) < len(names):
        raise ValueError(f"Several datasets have the same name: {', '.join(names)}; expected NAME=ROOT with names.")
    if replace:
        if len(parsed) < 2:
            raise ValueError("There is one dataset; expected at least two, to train on one and evaluate on another.")
        return {one.name: one.root for one in parsed}
    check_keys("--data", names, list(datasets))
    return {**datasets, **{one.name: one.root for one in parsed}}


def _protocol(found: Any, datasets: Mapping[str, str]) -> tuple[Direction, ...]:
    """Read the protocol."""
    if found == LEAVE_ONE_OUT:
        if len(datasets) < 2:
            raise ValueError("There is one dataset; expected at least two, to train on one and evaluate on another.")
        return tuple(Direction(tuple(one for one in datasets if one != name), (name,)) for name in datasets)
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"protocol is {found!r}; expected {LEAVE_ONE_OUT!r} or a list of train and evaluate.")
    directions = []
    for one in found:
        check_keys("protocol", one, ["train", "evaluate"])
        train, evaluate = (_known(f"protocol.{key}", one.get(key), datasets) for key in ("train", "evaluate"))
        if both := set(train) & set(evaluate):
            raise ValueError(f"protocol trains and evaluates on {', '.join(sorted(both))}; expected other datasets.")
        directions.append(Direction(train, evaluate))
    evaluated = [name for one in directions for name in one.evaluate]
    if repeated := sorted({name for name in evaluated if evaluated.count(name) > 1}):
        raise ValueError(
            f"protocol evaluates on {', '.join(repeated)} more than once; expected one training for each."
        )
    return tuple(directions)


def _known(key: str, names: Any, datasets: Mapping[str, str]) -> tuple[str, ...]:
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"{key} is {names!r}; expected a list of datasets.")
    check_keys(key, names, list(datasets))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{key} is {names!r}; expected different datasets, at least one.")
    return tuple(names)


def _group(key: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read a group of settings with defaults."""
    found = values.get(key, {})
    check_keys(key, found, list(defaults))
    for name, value in found.items():
        default = defaults[name]
        if name in _REAL:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{key}.{name} is {value!r}; expected a number, at least 0.")
        elif isinstance(default, int):
            least = 0 if name in _CAN_BE_ZERO else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{key}.{name} is {value!r}; expected an integer of at least {least}.")
        if isinstance(default, list) and name != "variants":
            read_numbers(f"{key}.{name}", value, 1)
    return {**defaults, **found}


__all__ = ["GENERATED", "PLANS", "Direction", "Plan", "make_plan", "plan_path", "read_plan"]
