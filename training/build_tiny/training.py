"""Train and evaluate adapters on cached features."""

import copy
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.data.collator import ViP2ClipCollator
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.models.vip2clip.image_loading_vip2clip import load_image
from vip2clip_hf.training.feature_cache import FeatureCache
from vip2clip_hf.training.trainer import parameter_groups


# Adapters


class Cached:
    """Embeddings, masks and labels of one data set, computed once with one tower at one size."""

    def __init__(self, model, dataset, folder: Path, name: str):
        processor = ViP2ClipImageProcessor(size=model.config.image_size)
        self.cache = FeatureCache.build(model.eval(), processor, dataset, folder, batch_size=16)
        self.name, self.dataset, self.collator = name, dataset, ViP2ClipCollator(processor)
        self.categories, self.rows = dataset["category"], list(range(len(dataset)))

    @property
    def count(self) -> int:
        return len(self.rows)

    def thinned(self, most: int = 160) -> "Cached":
        """Every n-th image of a large set, for choosing."""
        thin, step = copy.copy(self), max(1, -(-self.count // most))
        thin.rows, thin.categories = self.rows[::step], self.categories[::step]
        return thin

    def row(self, position: int) -> dict:
        return self.cache.row(self.rows[position])

    def batch(self, positions) -> dict[str, torch.Tensor]:
        return self.collator([self.row(position) for position in positions])


def train_adapters(model, sets: list[Cached], per_set: int, epochs: int, rates: tuple[float, float], seed: int):
    """
    Adapters on several sets: `per_set` images of each an epoch (all, where there are fewer), batches of 8. A generator
    that yields after every epoch.
    """
    optimizer = torch.optim.Adam(parameter_groups(model, *rates))
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        chosen = [(one, position) for one in sets for position in rng.permutation(one.count)[:per_set]]
        rng.shuffle(chosen)
        model.train()
        for start in range(0, len(chosen), 8):
            rows = [one.row(int(position)) for one, position in chosen[start : start + 8]]
            loss = model(**sets[0].collator(rows)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        yield epoch + 1


def evaluate_cached(model, data: Cached) -> dict[str, float]:
    """The mean metrics on a set, from its embeddings; masks at the size of the model, as everywhere."""
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
                batch["mask_label_valid"],
            )
    return metrics.compute()["mean"]


def local_contrast(data: Cached, size: int) -> dict[str, float]:
    """The trivial detector: how far a pixel is from the mean around it, smoothed; the image by its largest value."""
    metrics = AnomalyMetrics()
    for position in range(data.count):
        image = load_image(data.dataset[position]["image"]).convert("L").resize((size, size))
        grey = np.asarray(image, dtype=np.float32) / 255
        contrast = ndimage.gaussian_filter(abs(grey - ndimage.uniform_filter(grey, size // 6)), 4)
        batch = data.batch([position])
        metrics.update(
            contrast.max(keepdims=True)[0], batch["labels"], contrast[None], batch["mask_labels"],
            [data.categories[position]], batch["mask_label_valid"],
        )  # fmt: skip
    return metrics.compute()["mean"]


def generated_set(folder: Path, categories: tuple[str, ...], normal: int, anomalous: int, seed: int):
    root = folder / f"generated-{'-'.join(categories)}-{seed}"
    if not root.exists():
        write_dataset(root, categories, num_normal=normal, num_anomalous=anomalous, size=256, seed=seed)
    return load_folder(root)
