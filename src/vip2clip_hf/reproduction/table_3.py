"""Table 3: measure the trained model of a reproduction, or use what was measured before on the same hardware."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.vip2clip.image_loading_vip2clip import load_image
from ..training.arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from ..utils.hardware import describe_hardware
from .efficiency import measure_variants
from .efficiency_training import measure_training
from .method import ViP2ClipMethod
from .settings import FULL, MODEL_KEYS, digest_of, model_fields, training_fields
from .work import efficiency_dataset


if TYPE_CHECKING:
    from .computing import Reproduction


def measured_efficiency(
    reproduction: "Reproduction",
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """
    Measure inference and training of the full model.

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
    key = {
        "efficiency": settings, "model": reproduction.work.models[FULL, name],
        "data": reproduction.data.fingerprint(name),
        "hardware": describe_hardware(model.device),
    }  # fmt: skip
    digest = digest_of(key)
    if (found := store.result(digest, "efficiency")) is not None:
        return found["results"], []
    rows = reproduction.data[name]
    count = min(len(rows), int(settings["images"]))
    chosen = rows.select(sorted({number * len(rows) // count for number in range(count)}))
    images = [load_image(image) for image in chosen["image"]]
    inference = measure_variants(
        model, processor, images, names=settings["variants"], repeats=int(settings["repeats"]),
        batch_sizes=[size for size in settings["batch_sizes"] if size <= len(images)],
    )  # fmt: skip
    training = measure_training(*training_arguments(reproduction, name))
    results = {"inference": inference, "training": training}
    store.finish_result(digest, {"results": results, "key": key}, "efficiency")
    return results, []


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
    plan = reproduction.plan
    direction = plan.direction(dataset)
    if direction is None:
        raise ValueError(f"The protocol does not evaluate on {dataset!r}; expected a dataset of the protocol.")
    fields = model_fields(plan, {})
    model = ModelArguments(clip=plan.backbone, **{name: fields[name] for name in MODEL_KEYS if name in fields})
    sources = [reproduction.data.source(name) for name in direction.train]
    data = DataArguments(train_data=[f"{source.name}={source.root}" for source in sources])
    arguments = {"report_to": "none", "disable_tqdm": True, **training_fields(plan)}
    if reproduction.device == "cpu":
        arguments["use_cpu"] = True
    output = Path(reproduction.store.folder, "trained")
    return model, data, ViP2ClipTrainingArguments(output_dir=str(output), seed=plan.seeds[0], **arguments)


__all__ = ["measured_efficiency", "training_arguments"]
