"""What a plan contains."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from ..data.sources import DataSource


LEAVE_ONE_OUT, GENERATED = "leave-one-out", "generated:"
# Default values of the groups of settings. Their keys are the only ones allowed.
GENERATED_DEFAULTS = {"num_normal": 6, "num_anomalous": 2, "size": 160}
EFFICIENCY_DEFAULTS: dict[str, Any] = {
    "dataset": None,
    "images": 8,
    "batch_sizes": [1, 8],
    "repeats": 10,
    "variants": ["float32", "bfloat16"],
}
EVALUATION_DEFAULTS = {
    "batch_size": 8,
    "num_workers": 0,
    "aupro_convention": "exact",
    "fpr_limit": 0.3,
    "feature_memory": 0,
}


# Settings of the groups that need not be whole numbers, and whole ones that can be 0.


@dataclass(frozen=True)
class Direction:
    """
    One training of the protocol, and the datasets to evaluate it on.

    Args:
        train (`tuple[str, ...]`): names of the datasets to train on.
        evaluate (`tuple[str, ...]`): names of the datasets to evaluate on.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """
    What to train and evaluate. The files `plans/*.yaml` of the package describe each field.

    Args:
        name (`str`): name of the plan.
        backbone (`str`): folder or Hub id of a CLIP checkpoint, or `"bundled"`.
        datasets (`dict[str, str]`): folder of each dataset, or `"generated: CATEGORIES"`, by name.
        recipe (`str`): name of a recipe of `vip2clip train`.
        training (`dict`): training arguments that replace those of the recipe.
        model (`dict`): fields of [`ViP2ClipConfig`] that replace those of the recipe.
        seeds (`tuple[int, ...]`): random seeds. Everything is trained once with each.
        protocol (`tuple[Direction, ...]`): which training belongs to which dataset.
        ablations (`tuple[str, ...]`): datasets of Tables 4 to 6 and Figure 6.
        top_k (`tuple[int, ...]`): numbers of patches in Figure 6.
        state_words (`tuple[tuple[str, str], ...]`): pairs of words in Table 6.
        rows (`dict[str, tuple[str, ...]]`): settings to run, by number of a table. Other tables run completely.
        generated, efficiency, evaluation (`dict`): settings of generated datasets, of Table 3 and of the evaluation.
        methods (`dict[str, dict]`): other methods of Tables 1 to 3, by their names in `vip2clip compare`, each with
            `model` (fields of its configuration) and `training` (training arguments that replace those of its
            recipe). They use the backbone of the plan.
        pictures (`int`): number of images per dataset in Figures 3, 4 and 7.
        feature_cache (`bool`): whether trainings share a feature cache, in float16 unless `training` sets
            `cache_dtype`.
    """

    name: str
    backbone: str
    datasets: dict[str, str]
    recipe: str
    training: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (111,)
    protocol: tuple[Direction, ...] = ()
    ablations: tuple[str, ...] = ()
    top_k: tuple[int, ...] = (1, 10, 20, 50, 100, 200)
    state_words: tuple[tuple[str, str], ...] = (("good", "damaged"),)
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    generated: dict[str, Any] = field(default_factory=lambda: dict(GENERATED_DEFAULTS))
    efficiency: dict[str, Any] = field(default_factory=lambda: dict(EFFICIENCY_DEFAULTS))
    evaluation: dict[str, Any] = field(default_factory=lambda: dict(EVALUATION_DEFAULTS))
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: int = 2
    feature_cache: bool = True

    def direction(self, dataset: str) -> Direction | None:
        """Return the training whose model is evaluated on a dataset. `None` if the protocol does not contain it."""
        return next((one for one in self.protocol if dataset in one.evaluate), None)

    def source(self, dataset: str) -> DataSource:
        """Return name and location of a dataset that is not generated."""
        return DataSource.parse(f"{dataset}={self.datasets[dataset]}")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-serializable values, as in a plan file."""
        found = json.loads(json.dumps(dataclasses.asdict(self)))
        del found["name"]
        return found


__all__ = [
    "EFFICIENCY_DEFAULTS",
    "EVALUATION_DEFAULTS",
    "GENERATED",
    "GENERATED_DEFAULTS",
    "LEAVE_ONE_OUT",
    "Direction",
    "Plan",
]
