"""Steps of APRIL-GAN on features: comparison with prompts, with references, and the published few-shot score."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.vip2clip.loss_vip2clip import dice_loss, focal_loss
from ..models.vip2clip.reference_distances_vip2clip import nearest_distances, normalized
from .april_gan_outputs import AprilGanReferences
from .vision_embeddings import upcast


# Smallest norm that a patch is divided by, that of torch.nn.functional.normalize.
LEAST_NORM = 1e-12
# Smoothing of the focal loss in the published code.
FOCAL_SMOOTH = 1e-5


def compare_with_prompts(
    patch_embeds: torch.Tensor, layers: nn.ModuleList, text_embeds: torch.Tensor, logit_scale: float
) -> torch.Tensor:
    """
    Map the patches of each layer to the joint space, and compare them with the prompts.

    Args:
        patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, hidden_size)`): patch tokens.
        layers (`torch.nn.ModuleList`): a linear layer for each layer.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`): text embeddings [normal,
            anomalous] of each image, L2-normalized.
        logit_scale (`float`): factor of the cosines.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_layers, 2, num_patches)`: scaled cosines.
    """
    found = []
    layer: Any
    for patches, layer in zip(patch_embeds.unbind(1), layers):
        mapped = F.linear(upcast(patches), upcast(layer.weight), upcast(layer.bias))  # (B, P, D)
        # Dividing the products, not the patches, saves a copy of all patches.
        norm = torch.linalg.vector_norm(mapped, dim=-1).clamp_min(LEAST_NORM)  # (B, P)
        found.append(logit_scale * (text_embeds @ mapped.mT) / norm[:, None])  # (B, 2, P)
    return torch.stack(found, dim=1)


def layer_margins(patch_logits: torch.Tensor, size: int) -> torch.Tensor:
    """
    Compute how much the logit of the anomalous prompts exceeds that of the normal prompts, for each pixel and layer.

    The published code resizes both logits, then applies a softmax. A softmax of two logits is a sigmoid of their
    difference, and resizing is linear, so only the difference is resized.

    Args:
        patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`): logits [normal,
            anomalous].
        size (`int`): side of the maps.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_layers, size, size)`: differences of logits. Their sigmoid is
        the probability of the anomalous prompts.
    """
    return resize_corners(patch_logits[:, :, 1] - patch_logits[:, :, 0], size)


def resize_corners(maps: torch.Tensor, size: int) -> torch.Tensor:
    """
    Resize maps with bilinear interpolation and aligned corners.

    Args:
        maps (`torch.FloatTensor` of shape `(batch_size, num_layers, grid, grid)`): maps.
        size (`int`): side of the result.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_layers, size, size)`: the maps.
    """
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=True)


def compare_with_references(patch_embeds: torch.Tensor, references: AprilGanReferences) -> torch.Tensor:
    """
    Compute the distance of each patch to the nearest patch of the references: 1 - cos, over all positions.

    All patches are compared, in blocks, so the memory does not grow with the number of references.

    Args:
        patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, hidden_size)`): patch tokens.
        references ([`AprilGanReferences`]): references of the same layers.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_layers, num_patches)`: distances, in [0, 2].
    """
    queries = normalized(patch_embeds).transpose(0, 1)  # (L, B, P, width)
    rows = references.rows.to(queries.device)
    distances = nearest_distances(queries.flatten(1, 2), rows)  # (L, B * P)
    return distances.unflatten(1, queries.shape[1:3]).transpose(0, 1)  # (B, L, P)


def april_gan_loss(
    patch_logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None = None, dice_rows: bool = False
) -> dict[str, torch.Tensor]:
    """
    Compute the focal loss and the dice loss of the anomalous probabilities at the size of the masks.

    Args:
        patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Logits [normal, anomalous].
        masks (`torch.Tensor` of shape `(batch_size, size, size)`):
            0 for normal pixels, others are anomalous.
        valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            Images to include, by default all of them.
        dice_rows (`bool`, defaults to `False`):
            Whether the dice loss of a batch of one image takes its rows of pixels as images.

    Returns:
        `dict[str, torch.FloatTensor]`: `focal` and `dice_anomalous`, summed over layers, of shape `()`.
    """
    masks, size = (masks != 0).to(patch_logits.device), masks.shape[-1]
    if valid is not None:
        valid = valid.bool().to(masks.device)
        masks = masks & valid[:, None, None]
    dice_valid, rows = valid, dice_rows and len(masks) == 1
    if rows and valid is not None:
        dice_valid = valid.expand(size)
    focal, dice = [], []
    for margins in layer_margins(patch_logits, size).unbind(1):  # (B, S, S)
        # A sigmoid for each: 1 - p would lose the digits of small probabilities.
        both = torch.stack([-margins, margins], dim=1).sigmoid()  # (B, 2, S, S)
        focal.append(focal_loss(both, masks, smooth=FOCAL_SMOOTH, valid=valid))
        pair = (both[:, 1], masks)
        pair = (pair[0].transpose(0, 1), pair[1].transpose(0, 1)) if rows else pair  # (S, 1, S)
        dice.append(dice_loss(*pair, valid=dice_valid))
    return {"focal": torch.stack(focal).sum(), "dice_anomalous": torch.stack(dice).sum()}


def published_few_shot_scores(probabilities: torch.Tensor, map_maxima: torch.Tensor) -> torch.Tensor:
    """
    Compute the few-shot image scores of the published code, for all test images of a class.

    They are (p + (m - min m) / (max m - min m)) / 2, with the zero-shot probability p and the maximum m of the map.
    The minimum and the maximum of m are those of all test images, so the score of an image depends on the other
    images: these scores cannot be computed for one image, and not without test data. The `scores` of
    [`AprilGanForAnomalyDetection`] can.

    If all m are equal, as for a single image, the published code divides by zero. Here the second term is then 0.

    Args:
        probabilities (`torch.FloatTensor` of shape `(num_images,)`):
            `zero_shot_scores` of all test images of a class.
        map_maxima (`torch.FloatTensor` of shape `(num_images,)`):
            `map_maxima` of the same images, with references.

    Returns:
        `torch.FloatTensor` of shape `(num_images,)`: the scores, in [0, 1].

    Raises:
        ValueError: if the shapes differ, or there are no images.
    """
    shapes = tuple(probabilities.shape), tuple(map_maxima.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 1 or not shapes[0][0]:
        raise ValueError(
            f"probabilities and map_maxima have the shapes {shapes[0]} and {shapes[1]}; expected (num_images,) for "
            "both, with all test images of a class."
        )
    maxima = upcast(map_maxima)
    least, largest = maxima.min(), maxima.max()
    spread = torch.where(largest > least, largest - least, 1)  # NaN stays NaN
    return (upcast(probabilities) + (maxima - least) / spread) / 2


__all__ = [
    "april_gan_loss",
    "compare_with_prompts",
    "compare_with_references",
    "layer_margins",
    "published_few_shot_scores",
    "resize_corners",
]
