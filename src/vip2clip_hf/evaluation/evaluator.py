"""A model over a data set: the metrics of the paper's tables, on one process or several."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from ..data.collator import ViP2ClipCollator, undecoded
from ..image_processing_vip2clip import ViP2ClipImageProcessor
from ..modeling_vip2clip import ViP2ClipForAnomalyDetection
from .metrics import AnomalyMetrics


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
    progress: bool = False,
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
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `dict`: see [`AnomalyMetrics.compute`].

    Raises:
        ValueError: no images, or images without labels.
        OSError: an image that cannot be read.
    """
    if not len(dataset):
        raise ValueError("The data set has no images; expected at least one.")
    unlabelled = sum(label is None for label in dataset["label"])
    if unlabelled:
        raise ValueError(f"{unlabelled} of {len(dataset)} images have no label; expected one for every image.")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    collator = ViP2ClipCollator.for_dataset(
        image_processor, dataset, mask_threshold=mask_threshold, return_metadata=True
    )
    metrics = AnomalyMetrics(fpr_limit, aupro_convention)
    # Strided and not padded: every image is seen once, whatever the number of processes.
    share = undecoded(dataset).select(range(rank, len(dataset), world_size))
    loader = torch.utils.data.DataLoader(share, batch_size=batch_size, collate_fn=collator, num_workers=num_workers)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in tqdm(loader, desc="evaluating", disable=not progress or rank > 0):
                outputs = model(pixel_values=batch["pixel_values"].to(model.device))
                maps = {}
                if "mask_labels" in batch:
                    maps = {
                        "anomaly_maps": outputs.anomaly_maps,
                        "masks": batch["mask_labels"],
                        "has_mask": batch["mask_label_valid"],
                    }
                metrics.update(outputs.scores, batch["labels"], categories=batch["categories"], **maps)
    finally:
        model.train(was_training)
    if world_size > 1:
        states: list[dict] = [{} for _ in range(world_size)]
        dist.all_gather_object(states, metrics.state_dict())
        metrics = AnomalyMetrics(fpr_limit, aupro_convention)
        for state in states:
            part = AnomalyMetrics(fpr_limit, aupro_convention)
            part.load_state_dict(state)
            metrics.merge(part)
    result = metrics.compute()
    order = {name: position for position, name in enumerate(dict.fromkeys(dataset["category"]))}
    result["categories"] = dict(sorted(result["categories"].items(), key=lambda item: order[item[0]]))
    return result


__all__ = ["evaluate_model"]
