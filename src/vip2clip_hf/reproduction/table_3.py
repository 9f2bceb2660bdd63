"""Table 3: measure the trained model of a reproduction, or use what was measured before on the same hardware."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..baselines.detector import BaselineDetector
from ..baselines.methods import find_method
from ..baselines.training import training_kind
from ..models.vip2clip.image_loading_vip2clip import load_image
from ..training.arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from ..utils.hardware import describe_hardware
from .efficiency import VisionTower, measure_inference, measure_variants, trainable_parameters
from .efficiency_training import measure_training
from .method import ViP2ClipMethod
from .rivals import rival_arguments, rival_fields
from .settings import FULL, MODEL_KEYS, digest_of, model_fields, training_fields
from .work import efficiency_dataset


if TYPE_CHECKING:
    from .computing import Reproduction


def measured_efficiency(
    reproduction: "Reproduction",
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """
    Measure inference and training of the full model and of the other methods of the plan.

    Args:
        reproduction ([`Reproduction`]): the reproduction.

    Returns:
        `tuple[dict, list[str]]`: results for [`write_efficiency_table`], and notes.

    Raises:
        OSError, RuntimeError, ValueError: if it cannot be measured.
    """
    plan, store = reproduction.plan, reproduction.store
    name = efficiency_dataset(plan)
    problem = reproduction.data.problem(name)
    method = None if problem else reproduction.model_of(FULL, name)
    if not isinstance(method, ViP2ClipMethod):
        return {}, [f"Not measured: {problem or 'the full model is not trained'}."]
    model, processor = method.detector.model, method.detector.image_processor
    settings = plan.efficiency
    others = [one for one in map(find_method, plan.methods) if reproduction.is_rival(one.name)]
    rivals = [(one, found) for one in others if (found := reproduction.model_of(one.name, name)) is not None]
    missing = {one.key for one in others} - {one.key for one, _ in rivals}
    notes = [f"{one.name} is not measured: it is not trained." for one in others if one.key in missing]
    key = {
        "efficiency": settings, "model": reproduction.work.models[FULL, name],
        "methods": {one.key: reproduction.work.models[one.name, name] for one, _ in rivals},
        "data": reproduction.data.fingerprint(name),
        "hardware": describe_hardware(model.device),
    }  # fmt: skip
    digest = digest_of(key)
    if (found := store.result(digest, "efficiency")) is not None:
        return found["results"], notes
    rows = reproduction.data[name]
    count = min(len(rows), int(settings["images"]))
    chosen = rows.select(sorted({number * len(rows) // count for number in range(count)}))
    images = [load_image(image) for image in chosen["image"]]
    inference = measure_variants(
        model, processor, images, names=settings["variants"], repeats=int(settings["repeats"]),
        batch_sizes=[size for size in settings["batch_sizes"] if size <= len(images)],
    )  # fmt: skip
    training = [{"name": "ViP²-CLIP", **one} for one in measure_training(*training_arguments(reproduction, name))]
    category = chosen["category"][0]
    for one, rival in rivals:
        inference += _measure_rival(rival.for_category(category), images, settings)
        if one.trained:
            arguments = rival_training_arguments(reproduction, name, one.key)
            caches = (False, True) if rival.detector.model.caches_features else (False,)
            found = measure_training(*arguments, caches=caches, kind=training_kind(one.key))
            training += [{"name": one.name, **each} for each in found]
    results = {"inference": inference, "training": training}
    store.finish_result(digest, {"results": results, "key": key}, "efficiency")
    return results, notes


def _measure_rival(detector: BaselineDetector, images: list[Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure a method in float32."""
    model, found = detector.model, []
    tower = VisionTower(model, detector.image_processor)
    for size in (size for size in settings["batch_sizes"] if size <= len(images)):
        result = measure_inference(
            detector, images[: len(images) // size * size], tower=tower, batch_size=size,
            repeats=int(settings["repeats"]), device=model.device,
        )  # fmt: skip
        weights = trainable_parameters(model)
        found.append(
            {
                **result,
                "variant": "float32",
                "dtype": "float32",
                "compile": False,
                "trainable_parameters": weights,
            }
        )
    return found


def training_arguments(
    reproduction: "Reproduction", dataset: str
) -> tuple[ModelArguments, DataArguments, ViP2ClipTrainingArguments]:
    """
    Return the arguments of `vip2clip train` for the training of the full model.

    Args:
        reproduction ([`Reproduction`]): the reproduction.
        dataset (`str`): dataset that the model is evaluated on.

    Returns:
        `tuple`: the arguments.

    Raises:
        ValueError: if the protocol does not evaluate on the dataset.
    """
    fields = model_fields(reproduction.plan, {})
    model = ModelArguments(
        clip=reproduction.plan.backbone, **{name: fields[name] for name in MODEL_KEYS if name in fields}
    )
    return _arguments(reproduction, dataset, model, training_fields(reproduction.plan))


def rival_training_arguments(
    reproduction: "Reproduction", dataset: str, key: str
) -> tuple[ModelArguments, DataArguments, ViP2ClipTrainingArguments]:
    """
    Return the arguments of `vip2clip train` for the training of another method, see [`training_arguments`].

    Args:
        reproduction ([`Reproduction`]): the reproduction.
        dataset (`str`): dataset that the method is evaluated on.
        key (`str`): name of the method.

    Returns:
        `tuple`: the arguments.
    """
    fields = rival_fields(reproduction.plan, key)
    own = {name: fields.pop(name) for name in ("image_size", "feature_layers") if name in fields}
    settings = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    model = ModelArguments(method=key, clip=reproduction.plan.backbone, set=settings, **own)
    return _arguments(reproduction, dataset, model, rival_arguments(reproduction.plan, key))


def _arguments(
    reproduction: "Reproduction", dataset: str, model: ModelArguments, training: dict[str, Any]
) -> tuple[ModelArguments, DataArguments, ViP2ClipTrainingArguments]:
    plan = reproduction.plan
    direction = plan.direction(dataset)
    if direction is None:
        raise ValueError(f"The protocol does not evaluate on {dataset!r}; expected a dataset of the protocol.")
    sources = [reproduction.data.source(name) for name in direction.train]
    data = DataArguments(train_data=[f"{source.name}={source.root}" for source in sources])
    arguments = {"report_to": "none", "disable_tqdm": True, **training}
    if reproduction.device == "cpu":
        arguments["use_cpu"] = True
    output = Path(reproduction.store.folder, "trained")
    return model, data, ViP2ClipTrainingArguments(output_dir=str(output), seed=plan.seeds[0], **arguments)


__all__ = ["measured_efficiency", "training_arguments"]
