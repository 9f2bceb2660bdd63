"""Training loss of AdaCLIP."""

import torch
import torch.nn.functional as F

from ..models.vip2clip.loss_vip2clip import dice_loss, focal_loss


# Smoothing of the focal loss in the published code.
SMOOTH = 1e-5


def adaclip_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    patch_logits: torch.Tensor,
    mask_labels: torch.Tensor | None,
    mask_valid: torch.Tensor | None,
    weights: dict[str, float],
    dice_over_rows: bool = True,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Compute the loss: focal loss of the image, and focal and dice losses of the pixels, summed over layers.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Logits [normal, anomalous] of images.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            0 for normal images, 1 for anomalous images.
        patch_logits (`torch.FloatTensor` of shape `(batch_size, num_layers, 2, grid, grid)`):
            Logits [normal, anomalous] of patches.
        mask_labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            0 for normal pixels, other values for anomalous pixels.
        mask_valid (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            `False` for images without a mask. By default, all images have one.
        weights (`dict[str, float]`):
            Weight of each part.
        dice_over_rows (`bool`, defaults to `True`):
            Whether the dice loss is a mean over the rows of the images, as in the published code, or over images.

    Returns:
        `tuple`: the loss, and its unweighted parts `image`, `focal`, `dice_anomalous` and `dice_normal`, of shape
        `()`. Parts without labels are left out.
    """
    parts: dict[str, torch.Tensor] = {}
    if labels is not None:
        probabilities = logits.softmax(dim=-1)[..., None, None]  # (B, 2, 1, 1)
        parts["image"] = focal_loss(probabilities, labels.view(-1, 1, 1), smooth=SMOOTH)
    if mask_labels is not None:
        if mask_valid is not None:
            # Images without a mask must not affect the loss, even if their placeholder contains NaN.
            mask_labels = torch.where(mask_valid.bool()[:, None, None], mask_labels, 0)
        masks = (mask_labels != 0).to(patch_logits.dtype)  # (B, S, S)
        # A softmax over two logits is the sigmoid of their difference.
        margins = patch_logits[:, :, 1] - patch_logits[:, :, 0]  # (B, L, g, g)
        margins = F.interpolate(margins, size=masks.shape[1:], mode="bilinear", align_corners=True)  # (B, L, S, S)
        terms: dict[str, list[torch.Tensor]] = {"focal": [], "dice_anomalous": [], "dice_normal": []}
        for margin in margins.unbind(1):
            anomalous, normal = margin.sigmoid(), (-margin).sigmoid()
            both = torch.stack([normal, anomalous], dim=1)  # (B, 2, S, S)
            terms["focal"].append(focal_loss(both, masks, smooth=SMOOTH, valid=mask_valid))
            for name, maps, target in (("dice_anomalous", anomalous, masks), ("dice_normal", normal, 1 - masks)):
                terms[name].append(_dice(maps, target, mask_valid, dice_over_rows))
        parts.update({name: torch.stack(values).sum() for name, values in terms.items()})
    loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return loss, parts


def _dice(maps: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None, over_rows: bool) -> torch.Tensor:
    """Return the dice loss of maps of shape (B, H, W)."""
    if over_rows:
        height = maps.shape[1]
        maps, masks = (one.flatten(0, 1)[:, None] for one in (maps, masks))  # (B * H, 1, W)
        valid = None if valid is None else valid.repeat_interleave(height)
    return dice_loss(maps, masks, valid=valid)


__all__ = ["adaclip_loss"]
