import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import change_weights
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.inference.detector import ViP2ClipDetector
from vip2clip_hf.reproduction.feature_memory import FeatureMemory, RememberingDetector


@pytest.fixture
def photos() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


def counted(model, monkeypatch) -> list[int]:
    """Record the number of images of each call of the backbone."""
    sizes, encode = [], model.get_image_features

    def get_image_features(pixel_values, **options):
        sizes.append(len(pixel_values))
        return encode(pixel_values, **options)

    monkeypatch.setattr(model, "get_image_features", get_image_features)
    return sizes


def test_same_scores_and_each_image_once(model, image_processor, photos, monkeypatch):
    change_weights(model)
    plain = ViP2ClipDetector(model, image_processor)
    expected = plain.score(plain.prepare(photos))
    memory = FeatureMemory(10**9)
    detector = RememberingDetector(plain, memory)
    assert (detector.name, detector.image_size) == (plain.name, plain.image_size)
    sizes = counted(model, monkeypatch)
    for batch in (photos, photos[::-1], [photos[0], photos[0]]):
        found = detector.score(detector.prepare(batch))
        order = [photos.index(photo) for photo in batch]
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other[order], rtol=0, atol=1e-6)
    assert sizes == [4]
    # An image that is twice in a batch, and one that came into the memory after `prepare`.
    more = Image.fromarray(np.full((20, 20, 3), 7, np.uint8))
    batch = detector.prepare([more, more, photos[0]])
    assert list(batch[1]) == batch[0][:1]
    again = detector.prepare([more])
    assert detector.score(batch)[0].shape == (3,)
    detector.score(again)
    assert sizes == [4, 1]


def test_models_share_features(model, image_processor, photos, monkeypatch):
    """Another model with the same backbone and other adapters. With another size, features are computed again."""
    memory = FeatureMemory(10**9)
    first = RememberingDetector(ViP2ClipDetector(model, image_processor), memory)
    first.score(first.prepare(photos))
    second = ViP2ClipForAnomalyDetection(model.config).eval()
    second.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, weight in second.named_parameters():
            if not name.startswith("clip."):
                weight.add_(0.1 * torch.randn_like(weight))
    plain = ViP2ClipDetector(second, image_processor)
    expected = plain.score(plain.prepare(photos))
    sizes = counted(second, monkeypatch)
    detector = RememberingDetector(plain, memory)
    found = detector.score(detector.prepare(photos))
    assert sizes == []
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert not torch.allclose(found[0], first.score(first.prepare(photos))[0])
    second.config.image_embeds_layernorm = not second.config.image_embeds_layernorm
    changed = RememberingDetector(plain, memory)
    changed.score(changed.prepare(photos))
    assert sizes == [4]


def test_the_oldest_features_are_dropped(model, image_processor, photos):
    plain = ViP2ClipDetector(model, image_processor)
    memory = FeatureMemory(10**9)
    detector = RememberingDetector(plain, memory)
    expected, _ = detector.score(detector.prepare(photos))
    size = memory.num_bytes // 4
    assert (len(memory), memory.num_bytes) == (4, 4 * size)
    memory = FeatureMemory(2 * size)
    detector = RememberingDetector(plain, memory)
    keys = detector.prepare(photos)[0]
    detector.score(detector.prepare(photos[:2]))
    memory.get(keys[0])  # used last
    detector.score(detector.prepare(photos[2:3]))
    assert [key in memory for key in keys] == [True, False, True, False]
    assert memory.num_bytes == 2 * size
    # A batch that does not fit.
    found, _ = detector.score(detector.prepare(photos))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(memory) == 2
    memory.add(keys[3], *memory.get(keys[3]))
    assert memory.num_bytes == 2 * size
    # One image is kept, also if it is too large.
    memory = FeatureMemory(1)
    detector = RememberingDetector(plain, memory)
    found, _ = detector.score(detector.prepare(photos))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(memory) == 1
