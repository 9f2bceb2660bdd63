import numpy as np
import pytest
from PIL import Image

from vip2clip_hf.training.augmentation import Augmentation, cut_paste
from vip2clip_hf.training.rows import PADDING, EpochSampler


@pytest.fixture
def row():
    """An image with its mask in the red channel, to check that both move together."""
    pixels = np.random.default_rng(0).integers(100, 156, size=(30, 40, 3), dtype=np.uint8)
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[3:10, 5:25] = 1
    pixels[..., 0] = 200 * mask
    return {"image": Image.fromarray(pixels), "mask": Image.fromarray(mask), "label": 1, "image_id": "x"}


def test_view_zero_is_the_original(row):
    assert Augmentation(["flip", "color"])(row, 0, 3) is row


def test_reproducible_from_seed_view_and_image(row):
    def draw(seed, view, position):
        return np.asarray(Augmentation(["flip", "rotate", "color"], seed)(row, view, position)["image"]).tobytes()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(seed, view, position) for seed in (0, 1) for view in (1, 2) for position in (3, 4)}) == 8


@pytest.mark.parametrize("kind", ["flip", "rotate"])
def test_masks_move_with_images(row, kind):
    augmentation, seen = Augmentation([kind]), set()
    for view in range(1, 30):
        changed = augmentation(row, view, 0)
        image, mask = np.asarray(changed["image"]), np.asarray(changed["mask"])
        np.testing.assert_array_equal(image[..., 0] > 100, mask > 0)
        assert (changed["label"], changed["image_id"], changed["mask_threshold"]) == (1, "x", 0)
        seen.add(image.tobytes())
    assert len(seen) == 4  # all flips, all quarter turns


def test_color_leaves_the_mask(row):
    changed = Augmentation(["color"])(row, 1, 0)
    assert np.asarray(changed["image"]).tobytes() != np.asarray(row["image"]).tobytes()
    np.testing.assert_array_equal(np.asarray(changed["mask"]) > 0, np.asarray(row["mask"]) > 0)


def test_lossy_masks_use_their_threshold(row):
    noisy = np.asarray(row["mask"]) * 200 + 20
    row = {**row, "mask": Image.fromarray(noisy.astype(np.uint8)), "mask_threshold": 127}
    changed = Augmentation(["color"])(row, 1, 0)
    assert (np.asarray(changed["mask"]) > changed["mask_threshold"]).sum() == 7 * 20


def test_cut_paste_changes_normal_images_only(row):
    augmentation = Augmentation(["cut_paste"])
    assert augmentation(row, 1, 0)["label"] == 1
    normal = {**row, "mask": None, "label": 0}
    views = [augmentation(normal, view, 0) for view in range(1, 41)]
    labels = [view["label"] for view in views]
    assert 10 < sum(labels) < 30
    for view in views:
        assert (view["mask"] is None) == (view["label"] == 0)
        if view["label"]:
            marked = np.asarray(view["mask"]) > 0
            different = (np.asarray(view["image"]) != np.asarray(row["image"])).any(axis=-1)
            assert marked.any()
            assert not (different & ~marked).any()
            assert different.sum() > 0.5 * marked.sum()


@pytest.mark.parametrize("size", [(3, 3), (500, 20), (64, 64)])
def test_cut_paste_of_any_size(size):
    image, mask = cut_paste(Image.new("RGB", size, (90, 90, 90)), np.random.default_rng(0))
    assert image.size == mask.size == size
    assert np.asarray(mask).any()


def test_unknown_kinds():
    for kinds in ([], ["blur"], ["flip", "blur"]):
        with pytest.raises(ValueError, match="expected some of flip, rotate, color, cut_paste"):
            Augmentation(kinds)


def test_sampler():
    sampler = EpochSampler(11, seed=5)
    first = list(sampler)
    assert sorted(first) == list(range(11))
    assert first == list(EpochSampler(11, seed=5)) != list(EpochSampler(11, seed=6))
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(11))
    assert list(sampler) != first
    padded = EpochSampler(11, multiple=8)
    assert len(padded) == 16
    assert list(padded)[11:] == [PADDING] * 5
    assert list(padded)[:11] == list(EpochSampler(11))
    assert len(EpochSampler(16, multiple=8)) == 16


def test_sampler_cycles_through_the_views():
    for views, expected in ((1, [0, 0, 0, 0]), (3, [0, 1, 2, 0]), (None, [0, 1, 2, 3])):
        sampler, found = EpochSampler(5, num_views=views), []
        for epoch in range(4):
            sampler.set_epoch(epoch)
            (view,) = {index // 5 for index in sampler}
            found.append(view)
        assert found == expected
