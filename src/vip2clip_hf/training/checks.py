"""Checks of the training data before the first step, and of the loss of each step."""

import os
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from ..data.collator import count_masks
from ..data.mask_checks import warn_about_masks
from ..models.vip2clip.mask_options_vip2clip import MaskOptions
from .augmentation import Augmentation
from .resuming import last_complete_checkpoint


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)


def check_training_data(
    dataset: "Dataset", augmentation: Augmentation | None = None, mask_options: MaskOptions | None = None
) -> bool:
    """
    Check that a model can be trained on a dataset. Warns about suspicious masks, see [`warn_about_masks`].

    Args:
        dataset (`datasets.Dataset`): dataset to train on.
        augmentation ([`Augmentation`], *optional*): augmentation of the training images.
        mask_options ([`MaskOptions`], *optional*): how to read masks.

    Returns:
        `bool`: whether there are masks to train on.

    Raises:
        ValueError: if there are no images, if an image has no label, or if there are no anomalous images and no
            augmentation that creates them. The message describes how to fix it.
    """
    if not len(dataset):
        raise ValueError("The training dataset contains no images; expected normal and anomalous images.")
    labels = dataset["label"]
    unlabelled = sum(label is None for label in labels)
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(labels)} training images have no label; expected normal and anomalous images, for "
            "example in the folders normal/ and anomalous/ (see docs/data.md)."
        )
    pasted = augmentation is not None and "cut_paste" in augmentation.kinds
    if not any(labels):
        if not pasted:
            raise ValueError(
                f"All {len(labels)} training images are normal; expected anomalous images as well. Add anomalous "
                "images, or create synthetic defects with --augmentation cut_paste (see docs/training.md)."
            )
        return True
    if all(labels):
        logger.warning(
            "All training images are anomalous, so the image score cannot learn to separate them from normal images. "
            "Add normal images."
        )
    masks = count_masks(dataset)
    if not masks and not pasted:
        logger.warning(
            "No anomalous image has a mask: only the image loss is trained, and anomaly maps will be poor. Add masks "
            "(see docs/data.md), or create synthetic defects with masks: --augmentation cut_paste."
        )
    if masks:
        warn_about_masks(dataset, mask_options or MaskOptions(), "training dataset")
    return masks > 0 or pasted


def check_trained_weights(model: torch.nn.Module) -> None:
    """
    Check that only the adapters are trained, in float32 or float64.

    Checkpoints of the trainer contain the adapters only, and the feature cache assumes that CLIP does not change. An
    update of Adam is often smaller than the resolution of bfloat16 and float16, so most weights would not change.

    Args:
        model (`torch.nn.Module`): the model to train.

    Raises:
        ValueError: if a weight of CLIP is trained, or a trained weight is in half precision. The message names them.
    """
    clip = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and name.startswith("clip.")
    ]
    if clip:
        raise ValueError(
            f"{len(clip)} weights of CLIP have requires_grad=True ({clip[0]}, ...); expected none, because "
            "ViP2ClipTrainer trains and saves the adapters only. Call model.freeze_backbone(), or use "
            "transformers.Trainer to train parts of CLIP or LoRA."
        )
    half = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)]
    if half:
        names = ", ".join([*half[:3], *(["..."] if half[3:] else [])])
        raise ValueError(
            f"{len(half)} trained weights are in half precision ({names}); expected float32. Convert them with "
            ".float(), or freeze them. To compute in half precision, use --bf16 or --fp16."
        )


def check_loss(
    loss: torch.Tensor, batch_loss: torch.Tensor, step: int, image_ids: list[str], output_dir: str | os.PathLike
) -> None:
    """
    Check that the loss of a batch is finite.

    Args:
        loss (`torch.Tensor` of shape `()`): contribution of the batch to the loss of the step.
        batch_loss (`torch.Tensor` of shape `()`): loss of the batch alone, for the message.
        step (`int`): number of the step, from 1.
        image_ids (`list[str]`): images of the batch.
        output_dir (`str` or `os.PathLike`): output folder of the run, with its checkpoints.

    Raises:
        RuntimeError: if the loss is not finite. The message lists the images and the last complete checkpoint.
    """
    if torch.isfinite(loss):
        return
    last = last_complete_checkpoint(output_dir)
    raise RuntimeError(
        f"The loss is {batch_loss.item()} at step {step}; the images of the batch are {image_ids}. The model was not "
        "saved. "
        + (f"The last complete checkpoint is {last}." if last else "There is no complete checkpoint.")
        + " Try a lower learning rate or full precision."
    )


__all__ = ["check_loss", "check_trained_weights", "check_training_data"]
