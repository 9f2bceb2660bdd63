import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from helpers.reproduction import tiny_plan
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.checkpoints.bundled import bundled_backbone, bundled_checkpoint
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.detector import TrainableDetector, check_detector
from vip2clip_hf.reproduction import method
from vip2clip_hf.reproduction.method import (
    ViP2ClipMethod,
    checksum_of_backbone,
    create_model,
    device_of,
    load_backbone,
)


@pytest.fixture(autouse=True)
def _no_backbone_in_memory():
    load_backbone.cache_clear()


def test_bundled_backbone():
    """The frozen CLIP of the bundled checkpoint."""
    clip = bundled_backbone()
    assert isinstance(clip, CLIPModel)
    whole = ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint(), references=None)
    for name, weight in clip.state_dict().items():
        assert torch.equal(weight, whole.clip.state_dict()[name]), name
    assert {weight.dtype for weight in clip.parameters()} == {torch.float32}


def test_backbone(clip_folder):
    assert load_backbone("bundled") is load_backbone("bundled")
    bundled = checksum_of_backbone(tiny_plan())
    other = checksum_of_backbone(tiny_plan(backbone=str(clip_folder)))
    assert bundled != other
    assert checksum_of_backbone(tiny_plan()) == bundled
    with pytest.raises(OSError, match="absent"):
        checksum_of_backbone(tiny_plan(backbone=str(clip_folder / "absent")))


def adapters(seed: int, setting: str = "full", plan=None) -> dict[str, torch.Tensor]:
    return create_model(plan or tiny_plan(), setting, seed).adapter_state_dict()


def test_new_adapters():
    """They depend on the seed only, not on whether the backbone was in memory, nor on the random state."""
    first = adapters(1)
    torch.manual_seed(99)
    second = adapters(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = adapters(2)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_settings_of_the_model():
    config = create_model(tiny_plan(), "utpa+ica", 1).config
    assert (config.image_size, config.top_k, config.smoothing_sigma, config.fgp_scaled) == (64, 5, 1.0, False)
    assert (config.alignment, config.use_image_conditioning, config.use_fine_grained_perception) == (
        "unified", True, False,
    )  # fmt: skip
    assert create_model(tiny_plan(), "top_k=1", 1).config.top_k == 1
    words = create_model(tiny_plan(), "perfect/flawed", 1).config
    assert (words.normal_word, words.anomalous_word) == ("perfect", "flawed")
    known = create_model(tiny_plan(), "full", 1).config
    assert words.normal_token_ids != known.normal_token_ids
    with pytest.raises(ValueError, match="top_k"):
        create_model(tiny_plan(), "top_k=1000", 1)


def test_words_that_the_backbone_does_not_know():
    """The bundled backbone knows the words of Table 6 only."""
    with pytest.raises(ValueError, match="splendid"):
        create_model(tiny_plan(), "splendid/broken", 1)


def test_training_and_loading(tmp_path):
    plan = tiny_plan()
    photos = [Image.fromarray(one) for one in np.random.default_rng(0).integers(0, 256, (3, 50, 60, 3), np.uint8)]
    trained = ViP2ClipMethod(plan, "full", device="cpu")
    with pytest.raises(RuntimeError, match="ViP²-CLIP, full has no weights; call train, load or create first"):
        trained.score(None)
    with pytest.raises(RuntimeError, match="has no weights"):
        trained.detector  # noqa: B018
    dataset = load_folder(write_dataset(tmp_path / "set", ("dots",), 2, 1, 64))
    record = trained.train(dataset, seed=1, folder=tmp_path / "trained")
    assert record["steps"] == 2
    assert record["seconds"] > 0
    model = trained.detector.model
    assert record["trained_weights"] == sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert not model.training
    check_detector(trained, trainable=True)
    assert isinstance(trained, TrainableDetector)
    assert trained.image_size == 64
    expected = trained.score(trained.prepare(photos))
    assert expected[1].shape == (3, 64, 64)
    loaded = ViP2ClipMethod(plan, "full", device="cpu")
    loaded.load(tmp_path / "trained")
    new = ViP2ClipMethod(plan, "full", device="cpu")
    new.create(1)
    for one, other, untrained in zip(loaded.score(loaded.prepare(photos)), expected, new.score(new.prepare(photos))):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert not torch.allclose(untrained, other, atol=1e-4)
    assert sum(path.stat().st_size for path in (tmp_path / "trained").glob("*.safetensors")) < 16e6  # adapters only


def test_devices(monkeypatch):
    assert device_of("cpu") == "cpu"
    monkeypatch.setattr(method.torch.cuda, "is_available", lambda: True)
    assert device_of(None) == "cuda"
    monkeypatch.setattr(method.torch.cuda, "is_available", lambda: False)
    assert device_of(None) in ("cpu", "mps")
