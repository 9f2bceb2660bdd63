"""Settings of the paper's tables: which fields of the model each row changes, and what a training depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..training.named_recipes import recipe_path
from .plan_types import Plan


FULL = "full"
_STATIC = {"use_image_conditioning": False, "use_fine_grained_perception": False}
_NO_UTPA = {"alignment": "dual"}
# Tables 4 and 5: fields of the configuration by name of the setting. "none" is not trained: it is the frozen CLIP with
# the state words only. Trained static prompts without UTPA are "dual" of Table 5, with other published results.
SWITCHES: dict[str, dict[str, Any]] = {
    "none": {**_STATIC, **_NO_UTPA},
    "ica": {"use_fine_grained_perception": False, **_NO_UTPA},
    "fgp": {"use_image_conditioning": False, **_NO_UTPA},
    "ica+fgp": dict(_NO_UTPA),
    "utpa+ica": {"use_fine_grained_perception": False},
    "utpa+fgp": {"use_image_conditioning": False},
    FULL: {},
    "dual": {**_STATIC, **_NO_UTPA},
    "utpa": dict(_STATIC),
}
UNTRAINED = "none"
TABLE_4 = ("none", "ica", "fgp", "ica+fgp", "utpa+ica", "utpa+fgp", FULL)
TABLE_5 = ("dual", "utpa")
# Fig. 5: ViP²-CLIP_re, with static prompts and without ICA and FGP.
STATIC_PROMPTS = "utpa"
MAIN_WORDS = ("good", "damaged")
# Arguments of a training that do not change its result: how it runs, saves and logs.
RUN_ARGUMENTS = {
    "output_dir", "dataloader_num_workers", "save_strategy", "save_steps", "save_total_limit", "logging_steps",
    "logging_strategy", "report_to", "disable_tqdm", "dataloader_persistent_workers",
}  # fmt: skip
# Arguments of `vip2clip train` that are fields of the model.
MODEL_KEYS = ("variant", "image_size", "feature_layers", "top_k", "fgp_scaled")
_DATA_KEYS = ("clip", "train_data", "eval_data", "output_dir")


def words_setting(words: tuple[str, str]) -> str:
    """Return the setting of a pair of state words. That of the paper's words is the full model."""
    return FULL if words == MAIN_WORDS else "/".join(words)


def top_k_setting(count: int, plan: Plan) -> str:
    """Return the setting of a number of patches. That of the recipe is the full model."""
    return FULL if count == model_fields(plan, {}).get("top_k") else f"top_k={count}"


def rows_of(table: str, plan: Plan) -> list[str]:
    """
    List the settings of a table or figure that can be chosen in `rows`.

    Args:
        table (`str`): number of the table.
        plan ([`Plan`]): the plan.

    Returns:
        `list[str]`: names of the settings, in the order of the rows.
    """
    found = {"4": list(TABLE_4), "5": list(TABLE_5), "6": [words_setting(words) for words in plan.state_words]}
    return found[table]


def overrides_of(setting: str) -> dict[str, Any]:
    """
    Return the fields of the configuration that a setting changes.

    Args:
        setting (`str`): name of a setting: of `SWITCHES`, `"NORMAL/ANOMALOUS"` (state words) or `"top_k=K"`.

    Returns:
        `dict`: fields of [`ViP2ClipConfig`].
    """
    if setting in SWITCHES:
        return dict(SWITCHES[setting])
    if setting.startswith("top_k="):
        return {"top_k": int(setting.removeprefix("top_k="))}
    normal, anomalous = setting.split("/")
    return {"normal_word": normal, "anomalous_word": anomalous}


def model_fields(plan: Plan, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the fields of the model: those of the recipe, of the plan and of a setting.

    Args:
        plan ([`Plan`]): the plan.
        overrides (`Mapping[str, Any]`): fields of a setting.

    Returns:
        `dict`: `variant` and fields of [`ViP2ClipConfig`].
    """
    recipe = {name: value for name, value in _recipe(plan.recipe).items() if name in MODEL_KEYS}
    return {"variant": "paper", **recipe, **plan.model, **overrides}


def training_fields(plan: Plan) -> dict[str, Any]:
    """
    Return the training arguments: those of the recipe and of the plan.

    Args:
        plan ([`Plan`]): the plan.

    Returns:
        `dict`: fields of [`ViP2ClipTrainingArguments`], without `output_dir` and `seed`.
    """
    return {**recipe_fields(plan.recipe), **plan.training}


def recipe_fields(name: str) -> dict[str, Any]:
    """
    Return the training arguments of a recipe.

    Args:
        name (`str`): name of the recipe.

    Returns:
        `dict`: fields of [`ViP2ClipTrainingArguments`], without `output_dir` and `seed`.
    """
    others = (*MODEL_KEYS, *_DATA_KEYS, "seed", "method", "set")
    return {key: value for key, value in _recipe(name).items() if key not in others}


def halved_batch(fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    Halve the batch of a training and accumulate two of them, for less memory. The gradients are the same.

    Args:
        fields (`Mapping[str, Any]`): fields of [`ViP2ClipTrainingArguments`].

    Returns:
        `dict[str, Any]`: the fields, with half the batch.

    Raises:
        ValueError: if the batch is odd.
    """
    size = fields.get("per_device_train_batch_size", 8)
    if size % 2:
        raise ValueError(
            f"out of memory, and per_device_train_batch_size is {size}; expected an even number to halve it."
        )
    accumulated = 2 * fields.get("gradient_accumulation_steps", 1)
    return {**fields, "per_device_train_batch_size": size // 2, "gradient_accumulation_steps": accumulated}


def _recipe(name: str) -> dict[str, Any]:
    return json.loads(recipe_path(name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class TrainingKey:
    """
    Everything that the result of a training depends on. Two rows with equal keys share the training.

    Args:
        setting (`str`): name of the setting, for messages.
        train (`tuple[str, ...]`): names of the datasets to train on.
        seed (`int`): random seed.
        content (`str`): JSON of the model, the training arguments, the backbone and the contents of the datasets.
    """

    setting: str
    train: tuple[str, ...]
    seed: int
    content: str

    @property
    def digest(self) -> str:
        """Hash of the settings, 16 hexadecimal digits. It does not depend on names."""
        return digest_of(json.loads(self.content))


def training_key(
    plan: Plan, setting: str, train: tuple[str, ...], seed: int, backbone: str, fingerprints: Mapping[str, str]
) -> TrainingKey:
    """
    Create the key of a training.

    Args:
        plan ([`Plan`]): the plan.
        setting (`str`): name of the setting.
        train (`tuple[str, ...]`): datasets to train on.
        seed (`int`): random seed.
        backbone (`str`): checksum of the backbone.
        fingerprints (`Mapping[str, str]`): fingerprint of each dataset by name.

    Returns:
        [`TrainingKey`]: the key.
    """
    arguments = {name: value for name, value in training_fields(plan).items() if name not in RUN_ARGUMENTS}
    content: dict[str, Any] = {
        "backbone": backbone, "model": model_fields(plan, overrides_of(setting)), "seed": seed,
    }  # fmt: skip
    if setting != UNTRAINED:
        content |= {"training": arguments, "feature_cache": plan.feature_cache}
        content |= {"train": [fingerprints[name] for name in train]}
    else:
        content |= {"trained": False}
    return TrainingKey(setting, train, seed, json.dumps(content, sort_keys=True))


def evaluation_digest(
    model: str, dataset: str, fingerprints: Mapping[str, str], evaluation: Mapping[str, Any], scoring: int
) -> str:
    """
    Hash everything that the result of an evaluation depends on.

    Args:
        model (`str`): hash of the trained model or the detector.
        dataset (`str`): name of the dataset.
        fingerprints (`Mapping[str, str]`): fingerprint of each dataset by name.
        evaluation (`Mapping[str, Any]`): settings of the evaluation.
        scoring (`int`): version of the code that computes scores.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    used = {name: evaluation.get(name) for name in ("aupro_convention", "fpr_limit", "masks")}
    return digest_of({"model": model, "data": fingerprints[dataset], "evaluation": used, "scoring": scoring})


def digest_of(content: Any) -> str:
    """Hash JSON-serializable content, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


__all__ = [
    "FULL", "MAIN_WORDS", "MODEL_KEYS", "STATIC_PROMPTS", "SWITCHES", "TABLE_4", "TABLE_5", "UNTRAINED", "TrainingKey",
    "digest_of", "evaluation_digest", "halved_batch", "model_fields", "overrides_of", "recipe_fields", "rows_of",
    "top_k_setting", "training_fields", "training_key", "words_setting",
]  # fmt: skip
