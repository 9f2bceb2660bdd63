"""Losses of ViP²-CLIP (eqs. 9 and 10) as functions of tensors.

Half precision inputs are computed in float32; float64 stays float64.
"""

import torch
import torch.nn.functional as F


# Lower clamp of the probability of the true class where no smoothing keeps it away from zero.
MIN_PROBABILITY = 1e-6


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _mean_over_valid(per_image: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean over the valid images; 0, still part of the graph, when there is none."""
    if valid is None:
        return per_image.mean()
    valid = valid.to(device=per_image.device, dtype=per_image.dtype)
    return (per_image * valid).sum() / valid.sum().clamp_min(1)


def _check_shapes(maps: torch.Size, masks: torch.Tensor):
    if tuple(masks.shape) != tuple(maps):
        raise ValueError(f"masks have shape {tuple(masks.shape)}; expected that of the maps, {tuple(maps)}.")


def focal_loss(
    probabilities: torch.Tensor,
    masks: torch.Tensor,
    gamma: float = 2.0,
    smooth: float = 0.0,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Focal loss on two-class probabilities: mean of \\(-(1 - p_t)^\gamma \log p_t\\) over pixels and images, with
    \\(p_t\\) the probability of the pixel's true class (Lin et al. 2017, first term of eq. 10).

    Args:
        probabilities (`torch.FloatTensor` of shape `(batch_size, 2, height, width)`):
            [normal, anomalous], in [0, 1].
        masks (`torch.Tensor` of shape `(batch_size, height, width)`):
            1 for anomalous pixels, 0 for the others.
        gamma (`float`, defaults to 2.0):
            Exponent.
        smooth (`float`, defaults to 0.0):
            The released code's smoothing: the one-hot target is clamped to [smooth, 1 - smooth] and smooth is added
            to p_t. With 0, p_t is clamped at 1e-6 instead.
        valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            Images that count. All, when not given.

    Returns:
        `torch.FloatTensor` of shape `()`.

    Raises:
        ValueError: masks of another shape than the maps.
    """
    _check_shapes(probabilities[:, 0].shape, masks)
    probabilities = _at_least_float32(probabilities)
    masks = masks.to(probabilities.dtype)
    targets = torch.stack([1 - masks, masks], dim=1)  # (batch, 2, height, width)
    true_class = (targets.clamp(smooth, 1 - smooth) * probabilities).sum(1) + smooth  # (batch, height, width)
    if smooth == 0:
        true_class = true_class.clamp_min(MIN_PROBABILITY)
    # Rounding can bring p_t above 1, where a fractional power is not a number; the floor is far below what the
    # product with log p_t can show.
    modulation = (1 - true_class).clamp_min(torch.finfo(true_class.dtype).eps).pow(gamma)
    return _mean_over_valid((-modulation * true_class.log()).mean(dim=(-2, -1)), valid)


def dice_loss(
    probabilities: torch.Tensor, masks: torch.Tensor, smooth: float = 1.0, valid: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Dice loss of one map: mean over images of \\(1 - (2 \sum p g + s) / (\sum p + \sum g + s)\\) (eq. 10).

    Args:
        probabilities (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            Map in [0, 1].
        masks (`torch.Tensor` of shape `(batch_size, height, width)`):
            What the map should be, 0 or 1.
        smooth (`float`, defaults to 1.0):
            s above; keeps the loss defined where map and mask are empty.
        valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            Images that count. All, when not given.

    Returns:
        `torch.FloatTensor` of shape `()`.

    Raises:
        ValueError: masks of another shape than the maps.
    """
    _check_shapes(probabilities.shape, masks)
    probabilities = _at_least_float32(probabilities)
    masks = masks.to(probabilities.dtype)
    overlap = (probabilities * masks).sum(dim=(-2, -1))  # (batch,)
    total = probabilities.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1))
    return _mean_over_valid(1 - (2 * overlap + smooth) / (total + smooth), valid)


def image_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of the image level (L_global of eq. 9), mean over images and, where given, over layers.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, 2)` or `(batch_size, num_layers, 2)`):
            [normal, anomalous], already divided by the temperature. With a layer axis the result is the mean of the
            layers' cross-entropies, the reading of eq. 9 taken for the paper variant.
        labels (`torch.LongTensor` of shape `(batch_size,)`):
            0 normal, 1 anomalous.

    Returns:
        `torch.FloatTensor` of shape `()`.
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
    mask_label_valid: torch.Tensor | None = None,
    local_loss_weight: float = 1.0,
    focal_gamma: float = 2.0,
    focal_smooth: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    The training loss: image loss plus `local_loss_weight` times the sum over layers of focal loss, dice loss of the
    anomalous map and dice loss of the normal map (eqs. 9 and 10). What has no labels is left out.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, 2)` or `(batch_size, num_layers, 2)`):
            See [`image_loss`].
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            0 normal, 1 anomalous.
        layer_maps (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, height, width)`):
            Probabilities [normal, anomalous] of every layer, upsampled to the size of the masks.
        mask_labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 for anomalous pixels.
        mask_label_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            False for images whose pixels are not annotated; they count in the image loss only.

    Returns:
        `tuple`: the loss, and its parts `image`, `focal`, `dice_anomalous`, `dice_normal` before weighting, the last
        three summed over layers. All of shape `()`.
    """
    parts = {}
    if labels is not None:
        parts["image"] = image_loss(logits, labels)
    if mask_labels is not None:
        layers = layer_maps.unbind(1)
        normal_masks = 1 - mask_labels.to(layer_maps.dtype)
        valid = mask_label_valid
        parts["focal"] = sum(focal_loss(m, mask_labels, focal_gamma, focal_smooth, valid) for m in layers)
        parts["dice_anomalous"] = sum(dice_loss(m[:, 1], mask_labels, valid=valid) for m in layers)
        parts["dice_normal"] = sum(dice_loss(m[:, 0], normal_masks, valid=valid) for m in layers)
    loss = sum(value if name == "image" else local_loss_weight * value for name, value in parts.items())
    return loss, parts


__all__ = ["dice_loss", "focal_loss", "image_loss", "vip2clip_loss"]
