import math

import pytest
import torch

from vip2clip_hf.models.vip2clip.loss_vip2clip import dice_loss, focal_loss, image_loss, vip2clip_loss


def two_class(anomalous: torch.Tensor) -> torch.Tensor:
    return torch.stack([1 - anomalous, anomalous], dim=1)


@pytest.fixture
def masks():
    masks = torch.zeros(2, 8, 8)
    masks[1, 2:5, 3:7] = 1
    return masks


def test_focal_loss_at_one_half(masks):
    """p_t = 1/2 everywhere: (1/2)^2 log 2."""
    half = two_class(torch.full_like(masks, 0.5))
    assert focal_loss(half, masks).item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert focal_loss(half, masks, gamma=0.0).item() == pytest.approx(math.log(2), rel=1e-6)
    assert focal_loss(half, masks, gamma=1.0).item() == pytest.approx(0.5 * math.log(2), rel=1e-6)


def test_focal_loss_of_best_and_worst_maps(masks):
    assert focal_loss(two_class(masks), masks).item() == pytest.approx(0, abs=1e-12)
    worst = focal_loss(two_class(1 - masks), masks)
    assert worst.item() == pytest.approx(-math.log(1e-6) * (1 - 1e-6) ** 2, rel=1e-5)


def test_focal_smoothing_of_the_release(masks):
    """Target clamped to [s, 1 - s], s added to p_t: a worst map has p_t = 2 s."""
    worst = focal_loss(two_class(1 - masks), masks, smooth=1e-5)
    assert worst.item() == pytest.approx(-math.log(2e-5) * (1 - 2e-5) ** 2, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_focal_gradient_is_finite_at_the_ends(masks, gamma, smooth):
    anomalous = masks.clone()
    anomalous[0, :4] = 1  # wrong with probability 1, while the rest is correct with probability 1
    anomalous.requires_grad_()
    focal_loss(two_class(anomalous), masks, gamma=gamma, smooth=smooth).backward()
    assert torch.isfinite(anomalous.grad).all()


def test_dice_loss_by_hand(masks):
    """Image 0: empty mask, map of ones: 1 - 1/65. Image 1: 12 of 64 pixels: 1 - 25/77."""
    ones = torch.ones_like(masks)
    assert dice_loss(ones, masks).item() == pytest.approx(((1 - 1 / 65) + (1 - 25 / 77)) / 2, rel=1e-6)
    assert dice_loss(masks, masks).item() == pytest.approx(0, abs=1e-6)


def test_image_loss():
    logits = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    expected = (math.log(2) + math.log(1 + math.exp(-3))) / 2
    assert image_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-6)
    layers = torch.stack([logits, torch.zeros(2, 2)], dim=1)
    assert image_loss(layers, torch.tensor([0, 1])).item() == pytest.approx((expected + math.log(2)) / 2, rel=1e-6)


def test_loss_decreases_towards_the_mask(masks):
    anomalous = torch.full_like(masks, 0.5).requires_grad_()
    maps = two_class(anomalous)[:, None]
    loss, _ = vip2clip_loss(layer_maps=maps, mask_labels=masks)
    loss.backward()
    assert (anomalous.grad[masks == 1] < 0).all()
    assert (anomalous.grad[masks == 0] > 0).all()


def test_parts_and_weight(masks):
    maps = two_class(torch.rand_like(masks))[:, None].expand(-1, 3, -1, -1, -1)
    logits, labels = torch.randn(2, 2), torch.tensor([0, 1])
    loss, parts = vip2clip_loss(logits, labels, maps, masks, local_loss_weight=0.5)
    assert set(parts) == {"image", "focal", "dice_anomalous", "dice_normal"}
    local = parts["focal"] + parts["dice_anomalous"] + parts["dice_normal"]
    torch.testing.assert_close(loss, parts["image"] + 0.5 * local)
    torch.testing.assert_close(parts["focal"], 3 * focal_loss(maps[:, 0], masks))
    torch.testing.assert_close(parts["dice_normal"], 3 * dice_loss(maps[:, 0, 0], 1 - masks))
    assert set(vip2clip_loss(logits, labels)[1]) == {"image"}
    assert set(vip2clip_loss(layer_maps=maps, mask_labels=masks)[1]) == {"focal", "dice_anomalous", "dice_normal"}


def test_images_without_a_mask_are_ignored(masks):
    maps = two_class(torch.rand_like(masks))[:, None]
    _, first_only = vip2clip_loss(layer_maps=maps[:1], mask_labels=masks[:1])
    valid = torch.tensor([True, False])
    _, masked = vip2clip_loss(layer_maps=maps, mask_labels=masks, mask_valid=valid)
    for name, value in first_only.items():
        torch.testing.assert_close(masked[name], value)


def test_the_loss_without_valid_images_is_zero_with_a_gradient(masks):
    anomalous = torch.rand_like(masks).requires_grad_()
    loss, parts = vip2clip_loss(
        layer_maps=two_class(anomalous)[:, None], mask_labels=masks, mask_valid=torch.zeros(2, dtype=bool)
    )
    assert all(value.item() == 0 for value in parts.values())
    loss.backward()
    assert torch.equal(anomalous.grad, torch.zeros_like(anomalous))


def test_masks_of_another_shape_raise_an_error(masks):
    """Without an error, broadcasting would give a wrong loss."""
    maps = two_class(torch.rand_like(masks))
    for wrong in (masks[:, None], masks[:1], masks[:, :4]):
        with pytest.raises(ValueError, match=r"masks has shape .*; expected .*, the shape of the maps"):
            focal_loss(maps, wrong)
        with pytest.raises(ValueError, match=r"masks has shape .*; expected .*, the shape of the maps"):
            dice_loss(maps[:, 1], wrong)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_precision(masks, dtype, expected):
    maps = two_class(torch.rand_like(masks)).to(dtype)
    assert focal_loss(maps, masks).dtype == expected
    assert dice_loss(maps[:, 1], masks).dtype == expected
    assert image_loss(torch.randn(2, 2).to(dtype), torch.tensor([0, 1])).dtype == expected
    # A sum over 64 pixels in bfloat16 would have a much larger error.
    torch.testing.assert_close(dice_loss(maps[:, 1], masks).float(), dice_loss(maps[:, 1].float(), masks))


def test_missing_inputs_raise_an_error(masks):
    with pytest.raises(ValueError, match="labels are given without logits"):
        vip2clip_loss(labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="mask_labels are given without layer_maps"):
        vip2clip_loss(mask_labels=masks)
    with pytest.raises(ValueError, match="found neither"):
        vip2clip_loss(torch.randn(2, 2))
