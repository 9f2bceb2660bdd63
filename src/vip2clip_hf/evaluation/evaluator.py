"""A model over a data set: the metrics of the paper's tables, on one process or several."""

from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..data.collator import ViP2ClipCollator, undecoded
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.distributed import from_all, world
from .metrics import AnomalyMetrics
from .recorder import EvaluationRecorder


if TYPE_CHECKING:
    from datasets import Dataset


def evaluate_model(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    dataset: "Dataset",
    *,
    batch_size: int = 8,
    mask_threshold: int | float | None = None,
    fpr_limit: float = 0.3,
    aupro_convention: str = "exact",
    num_workers: int = 0,
    progress: bool | str = False,
    recorder: EvaluationRecorder | None = None,
) -> dict[str, Any]:
    """
    Image and pixel metrics per category and their mean. Maps are compared with masks at the size of the model, are
    shown to the metrics once and not kept.

    Where torch.distributed is initialised every process evaluates its share, each image once, and all get the result
    of the whole; the figures are those of one process.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model, on the device it is to run on.
        image_processor ([`ViP2ClipImageProcessor`]):
            Its image processor.
        dataset (`datasets.Dataset`):
            As `load_folder` and `load_benchmark` give it; all images need labels.
        batch_size (`int`, defaults to 8):
            Images that go through the model together.
        mask_threshold (`int` or `float`, *optional*):
            Mask values greater than this are anomalous; a benchmark's is `BENCHMARKS[name].mask_threshold`.
        fpr_limit, aupro_convention:
            See [`AnomalyMetrics`].
        num_workers (`int`, defaults to 0):
            Processes that decode images.
        progress (`bool` or `str`, defaults to `False`):
            Whether to show a progress bar, or what to write before it.
        recorder ([`EvaluationRecorder`], *optional*):
            Keeps scores and maps, and lets a later call go on where this one stopped.

    Returns:
        `dict`: see [`AnomalyMetrics.compute`].

    Raises:
        ValueError: no images, images without labels, or scores or maps that are not finite. Names the images.
        OSError: an image that cannot be read.
    """
    if not len(dataset):
        raise ValueError("The data set has no images; expected at least one.")
    unlabelled = sum(label is None for label in dataset["label"])
    if unlabelled:
        raise ValueError(f"{unlabelled} of {len(dataset)} images have no label; expected one for every image.")
    rank, world_size = world()
    recorder = EvaluationRecorder(len(dataset)) if recorder is None else recorder
    collator = ViP2ClipCollator.for_dataset(
        image_processor, dataset, mask_threshold=mask_threshold, return_metadata=True
    )
    metrics = AnomalyMetrics(fpr_limit, aupro_convention)
    # Strided and not padded: every image is seen once, whatever the number of processes.
    share = recorder.remaining()[rank::world_size]
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    loader = torch.utils.data.DataLoader(
        undecoded(dataset), batch_sampler=batches, collate_fn=collator, num_workers=num_workers
    )
    title = progress if isinstance(progress, str) else "evaluating"
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for positions, batch in zip(batches, tqdm(loader, desc=title, disable=not progress or rank > 0)):
                outputs = model(pixel_values=batch["pixel_values"].to(model.device))
                maps = {}
                if "mask_labels" in batch:
                    maps = {
                        "anomaly_maps": outputs.anomaly_maps,
                        "masks": batch["mask_labels"],
                        "has_mask": batch["mask_label_valid"],
                    }
                try:
                    metrics.update(outputs.scores, batch["labels"], categories=batch["categories"], **maps)
                except ValueError as error:
                    raise ValueError(f"{error} The images of the batch are {batch['image_ids']}.") from error
                recorder.add(positions, outputs.scores, outputs.anomaly_maps)
                recorder.save(metrics)
    finally:
        # What has been evaluated is not lost, whatever happened.
        recorder.save(metrics, now=True)
        model.train(was_training)
    states = [*recorder.earlier, metrics.state_dict()]
    metrics = AnomalyMetrics(fpr_limit, aupro_convention)
    for of_process in from_all(states):
        for state in of_process:
            part = AnomalyMetrics(fpr_limit, aupro_convention)
            part.load_state_dict(state)
            metrics.merge(part)
    result = metrics.compute()
    order = {name: position for position, name in enumerate(dict.fromkeys(dataset["category"]))}
    result["categories"] = dict(sorted(result["categories"].items(), key=lambda item: order[item[0]]))
    return result


__all__ = ["evaluate_model"]
