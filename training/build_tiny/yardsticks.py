"""Yardsticks of the study: a detector that needs no training."""

import datasets
import numpy as np
from scipy import ndimage

from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.data.collator import ViP2ClipCollator, undecoded
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.models.vip2clip.image_loading_vip2clip import load_image


def local_contrast(dataset: datasets.Dataset, size: int) -> dict[str, float]:
    """
    Compute the metrics of a trivial detector.

    The anomaly map is the smoothed absolute difference between a pixel and the mean of its neighbourhood. The image
    score is the maximum of the map.

    Args:
        dataset (`datasets.Dataset`): the dataset.
        size (`int`): side of the images and masks in pixels.

    Returns:
        `dict[str, float]`: means over the categories.
    """
    collator, rows = ViP2ClipCollator(ViP2ClipImageProcessor(size=size)), undecoded(dataset)
    metrics = AnomalyMetrics()
    for row in rows:
        image = load_image(row["image"]).convert("L").resize((size, size))
        grey = np.asarray(image, dtype=np.float32) / 255
        contrast = ndimage.gaussian_filter(abs(grey - ndimage.uniform_filter(grey, size // 6)), size / 64)
        batch = collator([row])
        metrics.update(
            contrast.max(keepdims=True)[0], batch["labels"], contrast[None], batch["mask_labels"],
            [row["category"]], batch["mask_valid"],
        )  # fmt: skip
    return metrics.compute()["mean"]
