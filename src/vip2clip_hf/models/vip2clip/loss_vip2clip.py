"""Losses of ViP²-CLIP (eqs. 9 and 10) as functions of tensors.

Inputs in half precision are converted to float32. float64 stays float64.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F


# Lower bound for the probability of the true class if the focal loss is not smoothed.
MIN_PROBABILITY = 1e-6


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _mean_over_valid(per_image: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over the valid images, or 0 (still part of the graph) if no image is valid."""
    if valid is None:
        return per_image.mean()
    valid = valid.to(device=per_image.device, dtype=per_image.dtype)
    return (per_image * valid).sum() / valid.sum().clamp_min(1)


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Add one or more tensors. The built-in `sum` starts with an integer."""
    total, *others = terms
    for term in others:
        total = total + term
    return total


def _check_shapes(maps: torch.Size, masks: torch.Tensor) -> None:
    if tuple(masks.shape) != tuple(maps):
        raise ValueError(f"masks has shape {tuple(masks.shape)}; expected {tuple(maps)}, the shape of the maps.")


def focal_loss(
    probabilities: torch.Tensor,
    masks: torch.Tensor,
    gamma: float = 2.0,
    smooth: float = 0.0,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Focal loss on two-class probabilities (Lin et al. 2017, first term of eq. 10).

    The mean of \\(-(1 - p_t)^\gamma \log p_t\\) over pixels and images, where \\(p_t\\) is the probability of the
    pixel's true class.

    Args:
        probabilities (`torch.FloatTensor` of shape `(batch_size, 2, height, width)`):
            [normal, anomalous], in [0, 1].
        masks (`torch.Tensor` of shape `(batch_size, height, width)`):
            1 for anomalous pixels, 0 for the others.
        gamma (`float`, defaults to 2.0):
            Exponent gamma.
        smooth (`float`, defaults to 0.0):
            Smoothing as in the released code: the one-hot target is clamped to [smooth, 1 - smooth], and `smooth` is
            added to p_t. If 0, p_t is clamped at 1e-6 instead.
        valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            Images to include, by default all of them.

    Returns:
        `torch.FloatTensor` of shape `()`: the loss.

    Raises:
        ValueError: if the shapes of masks and maps differ.
    """
    _check_shapes(probabilities[:, 0].shape, masks)
    probabilities = _at_least_float32(probabilities)
    masks = masks.to(probabilities.dtype)
    targets = torch.stack([1 - masks, masks], dim=1)  # (batch, 2, height, width)
    true_class = (targets.clamp(smooth, 1 - smooth) * probabilities).sum(1) + smooth  # (batch, height, width)
    if smooth == 0:
        true_class = true_class.clamp_min(MIN_PROBABILITY)
    # Rounding can make 1 - p_t negative, and a fractional power of it NaN. The lower bound is too small to change the
    # loss.
    modulation = (1 - true_class).clamp_min(torch.finfo(true_class.dtype).eps).pow(gamma)
    return _mean_over_valid((-modulation * true_class.log()).mean(dim=(-2, -1)), valid)


def dice_loss(
    probabilities: torch.Tensor, masks: torch.Tensor, smooth: float = 1.0, valid: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Dice loss of one map per image (second and third term of eq. 10).

    The mean of \\(1 - (2 \sum p g + s) / (\sum p + \sum g + s)\\) over images, with map p and mask g.

    Args:
        probabilities (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            Maps, in [0, 1].
        masks (`torch.Tensor` of shape `(batch_size, height, width)`):
            Target of the maps, 0 or 1.
        smooth (`float`, defaults to 1.0):
            Smoothing s. Keeps the loss defined if map and mask are empty.
        valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            Images to include, by default all of them.

    Returns:
        `torch.FloatTensor` of shape `()`: the loss.

    Raises:
        ValueError: if the shapes of masks and maps differ.
    """
    _check_shapes(probabilities.shape, masks)
    probabilities = _at_least_float32(probabilities)
    masks = masks.to(probabilities.dtype)
    overlap = (probabilities * masks).sum(dim=(-2, -1))  # (batch,)
    total = probabilities.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1))
    return _mean_over_valid(1 - (2 * overlap + smooth) / (total + smooth), valid)


def image_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Image loss: cross-entropy, averaged over images and layers (L_global of eq. 9).

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, 2)` or `(batch_size, num_layers, 2)`):
            Logits [normal, anomalous], already divided by the temperature. With logits per layer, the loss is the
            mean of the layers' cross-entropies, as eq. 9 is read for the paper variant.
        labels (`torch.LongTensor` of shape `(batch_size,)`):
            0 for normal images, 1 for anomalous images.

    Returns:
        `torch.FloatTensor` of shape `()`: the loss.
    """
    logits = _at_least_float32(logits)
    labels = labels.long()
    if logits.dim() == 3:
        labels = labels[:, None].expand(-1, logits.shape[1])
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def vip2clip_loss(
    logits: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    layer_maps: torch.Tensor | None = None,
    mask_labels: torch.Tensor | None = None,
    mask_valid: torch.Tensor | None = None,
    local_loss_weight: float = 1.0,
    focal_gamma: float = 2.0,
    focal_smooth: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Training loss of ViP²-CLIP (eqs. 9 and 10).

    The image loss plus `local_loss_weight` times the pixel losses: focal loss, dice loss of the anomalous map and dice
    loss of the normal map, summed over layers. Losses without labels are left out.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, 2)` or `(batch_size, num_layers, 2)`, *optional*):
            Logits [normal, anomalous], see [`image_loss`]. Required with `labels`.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            0 for normal images, 1 for anomalous images. Required for the image loss.
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, height, width)`, *optional*):
            Probabilities [normal, anomalous] of every layer, upsampled to the size of the masks. Required with
            `mask_labels`.
        mask_labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 for anomalous pixels, 0 for normal pixels. Required for the pixel losses.
        mask_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            `False` for images without a mask. They only contribute to the image loss.
        local_loss_weight (`float`, defaults to 1.0):
            Weight lambda of the pixel losses.
        focal_gamma (`float`, defaults to 2.0), focal_smooth (`float`, defaults to 0.0):
            Exponent and smoothing of the focal loss, see [`focal_loss`].

    Returns:
        `tuple`: the loss, and a dict with its unweighted parts `image`, `focal`, `dice_anomalous` and `dice_normal`.
        The last three are summed over layers. All have shape `()`.

    Raises:
        ValueError: if there are no labels, if logits or maps are missing for the labels, or if the shapes of masks and
            maps differ.
    """
    parts: dict[str, torch.Tensor] = {}
    if labels is not None:
        if logits is None:
            raise ValueError("labels are given without logits; pass both.")
        parts["image"] = image_loss(logits, labels)
    if mask_labels is not None:
        if layer_maps is None:
            raise ValueError("mask_labels are given without layer_maps; pass both.")
        layers = layer_maps.unbind(1)
        normal_masks = 1 - mask_labels.to(layer_maps.dtype)
        valid = mask_valid
        parts["focal"] = _sum(focal_loss(m, mask_labels, focal_gamma, focal_smooth, valid) for m in layers)
        parts["dice_anomalous"] = _sum(dice_loss(m[:, 1], mask_labels, valid=valid) for m in layers)
        parts["dice_normal"] = _sum(dice_loss(m[:, 0], normal_masks, valid=valid) for m in layers)
    if not parts:
        raise ValueError("Expected labels or mask_labels, found neither.")
    loss = _sum(value if name == "image" else local_loss_weight * value for name, value in parts.items())
    return loss, parts


__all__ = ["dice_loss", "focal_loss", "image_loss", "vip2clip_loss"]
