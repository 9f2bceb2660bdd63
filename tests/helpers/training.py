"""Training data, trainers, command lines of `vip2clip train`, and comparison of weights."""

from pathlib import Path

import torch
from transformers import CLIPModel

from helpers.tiny import TINY
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.trainer import ViP2ClipTrainer


def write_training_set(folder: Path) -> Path:
    """Write a dataset of 14 images. Two of the eight anomalous images have no mask."""
    root = write_dataset(folder, ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)
    for path in sorted(root.rglob("*_mask.png"))[:2]:
        path.unlink()
    return root


def build_trainer(
    clip: CLIPModel, image_processor: ViP2ClipImageProcessor, output_dir: Path, train_dataset, eval_dataset=None,
    variant: str = "paper", callbacks=None, **arguments,
) -> ViP2ClipTrainer:  # fmt: skip
    """Build a trainer with a new model that always has the same initial weights."""
    torch.manual_seed(5)
    model = ViP2ClipForAnomalyDetection.from_clip(clip, variant=variant, **TINY)
    defaults = {"output_dir": str(output_dir), "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = ViP2ClipTrainingArguments(**{**defaults, **arguments})
    return ViP2ClipTrainer(model, args, image_processor, train_dataset, eval_dataset, callbacks=callbacks)


def with_sgd(trainer: ViP2ClipTrainer) -> ViP2ClipTrainer:
    """Use SGD, so that steps are proportional to the gradients. The first step of Adam depends only on their sign."""
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.optimizer = torch.optim.SGD(parameters, lr=0.1)
    return trainer


def losses_of(trainer: ViP2ClipTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_tensors(first: dict, second: dict, tolerance: float):
    assert set(first) == set(second)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# The command


def write_train_and_eval_sets(folder: Path) -> tuple[Path, Path]:
    """Write a training dataset of 14 images and an evaluation dataset of 7 images."""
    return (
        write_dataset(folder / "train", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48),
        write_dataset(folder / "eval", ("waves",), num_normal=3, num_anomalous=1, size=48, seed=1),
    )


def train_arguments(folder: Path, clip_folder: Path, roots: tuple[Path, Path], *more: str) -> list[str]:
    """Return arguments for one epoch of a small model, with the output folder `folder / "out"`."""
    settings = ["--image_size", "48", "--feature_layers", "1", "2", "--top_k", "3", "--disable_tqdm", "true"]
    return [
        "--clip", str(clip_folder), "--train_data", str(roots[0]), "--eval_data", str(roots[1]), "--output_dir",
        str(folder / "out"), "--num_train_epochs", "1", "--use_cpu", "true", *settings, *more,
    ]  # fmt: skip
