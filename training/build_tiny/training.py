"""Train and evaluate adapters on cached features."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from scipy import ndimage

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.collator import ViP2ClipCollator
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.models.vip2clip.image_loading_vip2clip import load_image
from vip2clip_hf.training.feature_cache import FeatureCache
from vip2clip_hf.training.optimization import parameter_groups


class CachedDataset:
    """
    Cached embeddings, masks and labels of a dataset.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): model with the backbone.
        dataset (`datasets.Dataset`): the dataset.
        folder (`Path`): folder of the feature cache.
    """

    def __init__(self, model: ViP2ClipForAnomalyDetection, dataset: datasets.Dataset, folder: Path) -> None:
        processor = ViP2ClipImageProcessor(size=model.config.image_size)
        self.cache = FeatureCache.build(model.eval(), processor, dataset, folder, batch_size=16)
        self.dataset, self.collator = dataset, ViP2ClipCollator(processor)
        self.categories, self.rows = dataset["category"], list(range(len(dataset)))

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.rows)

    def subset(self, limit: int = 160) -> "CachedDataset":
        """Return a subset of at most `limit` images: every n-th image."""
        subset, step = copy.copy(self), max(1, -(-self.count // limit))
        subset.rows, subset.categories = self.rows[::step], self.categories[::step]
        return subset

    def row(self, position: int) -> dict[str, Any]:
        """Read the row of an image."""
        return self.cache.row(self.rows[position])

    def batch(self, positions: Iterable[int]) -> dict[str, torch.Tensor]:
        """Collate the rows of several images."""
        return self.collator([self.row(position) for position in positions])


def train_adapters(
    model: ViP2ClipForAnomalyDetection,
    sets: list[CachedDataset],
    per_set: int,
    epochs: int,
    rates: tuple[float, float],
    seed: int,
) -> Iterator[int]:
    """
    Train adapters on several datasets, in batches of 8.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): model to train; changed in place.
        sets (`list[CachedDataset]`): datasets to train on.
        per_set (`int`): maximum number of images per dataset and epoch.
        epochs (`int`): number of epochs.
        rates (`tuple[float, float]`): learning rates of the prompts and image-conditioned adapter, and of the
            fine-grained perception.
        seed (`int`): random seed of the batches.

    Yields:
        `int`: number of the epoch, from 1, after each epoch.
    """
    optimizer = torch.optim.Adam(parameter_groups(model, *rates))
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        chosen = [(data, position) for data in sets for position in rng.permutation(data.count)[:per_set]]
        rng.shuffle(chosen)
        model.train()
        for start in range(0, len(chosen), 8):
            rows = [data.row(int(position)) for data, position in chosen[start : start + 8]]
            loss = model(**sets[0].collator(rows)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        yield epoch + 1


def evaluate_cached(model: ViP2ClipForAnomalyDetection, data: CachedDataset) -> dict[str, float]:
    """Compute the metrics of a dataset from its embeddings, averaged over categories, with masks at the model size."""
    metrics = AnomalyMetrics()
    with torch.inference_mode():
        for start in range(0, data.count, 16):
            positions = range(start, min(start + 16, data.count))
            batch = data.batch(positions)
            outputs = model(image_embeds=batch["image_embeds"], patch_embeds=batch["patch_embeds"])
            metrics.update(
                outputs.scores,
                batch["labels"],
                outputs.anomaly_maps,
                batch["mask_labels"],
                [data.categories[position] for position in positions],
                batch["mask_valid"],
            )
    return metrics.compute()["mean"]


def local_contrast(data: CachedDataset, size: int) -> dict[str, float]:
    """
    Compute the metrics of a trivial detector.

    The anomaly map is the smoothed absolute difference between a pixel and the mean of its neighbourhood. The image
    score is the maximum of the map.
    """
    metrics = AnomalyMetrics()
    for position in range(data.count):
        image = load_image(data.dataset[position]["image"]).convert("L").resize((size, size))
        grey = np.asarray(image, dtype=np.float32) / 255
        contrast = ndimage.gaussian_filter(abs(grey - ndimage.uniform_filter(grey, size // 6)), 4)
        batch = data.batch([position])
        metrics.update(
            contrast.max(keepdims=True)[0], batch["labels"], contrast[None], batch["mask_labels"],
            [data.categories[position]], batch["mask_valid"],
        )  # fmt: skip
    return metrics.compute()["mean"]


def synthetic_set(
    folder: Path, categories: tuple[str, ...], normal: int, anomalous: int, seed: int
) -> datasets.Dataset:
    """Load a dataset of synthetic images. It is written to `folder` if it does not exist."""
    root = folder / f"generated-{'-'.join(categories)}-{seed}"
    if not root.exists():
        write_dataset(root, categories, num_normal=normal, num_anomalous=anomalous, size=256, seed=seed)
    return load_folder(root)
