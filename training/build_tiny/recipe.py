"""The recipe of the adapters, and how to train with it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, ViP2ClipTrainer, ViP2ClipTrainingArguments
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.provenance import describe_training_set
from vip2clip_hf.data.synthetic.dataset import ALL, write_dataset


# Name of the synthetic images among the training datasets.
GENERATED = "generated"
# Images of hazelnut_toy that are bundled as example photos. They are never used for training or evaluation.
EXAMPLES = (
    "hazelnut/test/colour/02.jpg",
    "hazelnut/test/colour/14.jpg",
    "hazelnut/test/good/23.jpg",
    "hazelnut/test/good/13.jpg",
)
# Image size for which the number of top patches and the smoothing below hold. Both follow the image size.
REFERENCE_SIZE, TOP_K, SMOOTHING = 320, 15, 8.0
BATCH_SIZE = 8
# Number of normal synthetic images per category.
SYNTHETIC = 10


@dataclass
class TrainingSet:
    """
    A dataset to train on.

    Args:
        name (`str`): name of the dataset.
        dataset (`datasets.Dataset`): its images.
    """

    name: str
    dataset: datasets.Dataset

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Entry of the dataset for `provenance.training_sets`. Opens all images once."""
        return describe_training_set(self.dataset, self.name)


@dataclass(frozen=True)
class Recipe:
    """
    Settings of a training of adapters. The defaults are those of the bundled checkpoint.

    Args:
        variant (`str`): variant of the model.
        image_size (`int`): side of the input images in pixels.
        config (`dict`): further fields of the configuration of the model.
        rates (`tuple[float, float]`): learning rates of the prompts and the image-conditioned adapter, and of the
            fine-grained perception.
        epochs (`int`): number of epochs.
        layers (`tuple[int, ...]`): feature layers.
        synthetic (`int`): number of normal synthetic images per category; 0.4 times as many of each kind of defect.
        average_from (`float`, *optional*): epochs after which the average of the weights begins.
        without (`str`, *optional*): name of a dataset that is left out of the training data.
    """

    variant: str = "paper"
    image_size: int = REFERENCE_SIZE
    config: dict[str, Any] = field(default_factory=lambda: {"fgp_scaled": False})
    rates: tuple[float, float] = (3e-4, 3e-4)
    layers: tuple[int, ...] = (3, 6, 9, 12)
    synthetic: int = SYNTHETIC
    epochs: int = 2
    average_from: float | None = 1
    without: str | None = None

    def describe(self) -> str:
        """Describe the recipe in one line."""
        changes = "".join(f", {name}={value}" for name, value in self.config.items())
        average = "" if self.average_from is None else f", weights averaged after epoch {self.average_from:g}"
        rates = " and ".join(f"{rate:g}" for rate in self.rates)
        return (
            f"variant {self.variant}{changes}, {self.image_size} pixels, learning rates {rates}, "
            f"batch size {BATCH_SIZE}, {self.epochs} epochs{average}"
        )

    def create(self, tower: str, seed: int) -> ViP2ClipForAnomalyDetection:
        """
        Create a model with new adapters.

        Args:
            tower (`str`): folder of the tower.
            seed (`int`): random seed of the adapters.

        Returns:
            [`ViP2ClipForAnomalyDetection`]: the model, in float32.
        """
        scale = self.image_size / REFERENCE_SIZE
        settings = {
            "variant": self.variant, "image_size": self.image_size, "feature_layers": self.layers,
            "top_k": max(1, round(TOP_K * scale**2)), "smoothing_sigma": SMOOTHING * scale, **self.config,
        }  # fmt: skip
        set_seed(seed)
        return ViP2ClipForAnomalyDetection.from_clip(tower, **settings).float()

    def train(
        self,
        model: ViP2ClipForAnomalyDetection,
        sets: dict[str, TrainingSet],
        seed: int,
        cache: Path,
    ) -> ViP2ClipImageProcessor:
        """
        Train the adapters of a model, with the trainer of the package.

        Args:
            model ([`ViP2ClipForAnomalyDetection`]): model from `create`; changed in place.
            sets (`dict[str, TrainingSet]`): training datasets by name.
            seed (`int`): random seed of the order of the images.
            cache (`Path`): folder of the feature cache.

        Returns:
            [`ViP2ClipImageProcessor`]: image processor of the model.
        """
        processor = ViP2ClipImageProcessor(size=self.image_size)
        used = [one for name, one in sets.items() if name != self.without]
        with tempfile.TemporaryDirectory() as folder:
            arguments = ViP2ClipTrainingArguments(
                output_dir=folder, seed=seed, num_train_epochs=self.epochs, average_weights_from=self.average_from,
                learning_rate=self.rates[0], perception_learning_rate=self.rates[1], cache_features=str(cache),
                per_device_train_batch_size=BATCH_SIZE, save_strategy="no", disable_tqdm=True,
            )  # fmt: skip
            trainer = ViP2ClipTrainer(
                model, arguments, processor, training_sets=[one.provenance for one in used],
                train_dataset=datasets.concatenate_datasets([one.dataset for one in used]),
            )  # fmt: skip
            trainer.train()
        model.eval()
        return processor


def load_sets(roots: Sequence[str], folder: Path) -> dict[str, TrainingSet]:
    """
    Load the real datasets without the example photos, and the synthetic images, which are written if necessary.

    Args:
        roots (`Sequence[str]`): folders of the real datasets.
        folder (`Path`): folder for the synthetic images.

    Returns:
        `dict[str, TrainingSet]`: the datasets by name, the synthetic images last.
    """
    sets = {}
    for root in roots:
        name = Path(root).name
        sets[name] = TrainingSet(name, without_examples(load_folder(root)))
    sets[GENERATED] = synthetic_set(folder)
    return sets


def without_examples(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return a dataset without the example photos of the package."""
    return dataset.select([n for n, name in enumerate(dataset["image_id"]) if not name.endswith(EXAMPLES)])


def synthetic_set(folder: Path, count: int = SYNTHETIC) -> TrainingSet:
    """
    Load the synthetic images. They are written if necessary.

    Args:
        folder (`Path`): folder of the study.
        count (`int`): number of normal images per category; 0.4 times as many of each kind of defect.

    Returns:
        `TrainingSet`: the images of all categories.
    """
    root = folder / (GENERATED if count == SYNTHETIC else f"{GENERATED}-{count}")
    if not root.exists():
        write_dataset(root, ALL, num_normal=count, num_anomalous=count * 2 // 5, size=320, seed=3)
    return TrainingSet(GENERATED, load_folder(root))
