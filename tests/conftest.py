import os


os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
# The models are tiny: threads cost more than they bring, much more where several tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel

from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.convert_vip2clip_to_hf import convert_release_checkpoint


FIXTURES = Path(__file__).parent / "fixtures"
TINY = {"image_size": 48, "feature_layers": (1, 2, 4), "top_k": 5, "smoothing_sigma": 2.0, "meta_net_hidden_size": 6}


def tiny_clip_config(**overrides) -> CLIPConfig:
    """Two text and four vision blocks, patch 8, native grid 4 x 4, joint space of 16 dimensions."""
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
    vision.update(image_size=32, patch_size=8)
    return CLIPConfig(text_config=text, vision_config=vision, **{"projection_dim": 16, **overrides})


def tiny_config(variant: str = "paper", **overrides) -> ViP2ClipConfig:
    return ViP2ClipConfig.from_variant(variant, **{"clip_config": tiny_clip_config(), **TINY, **overrides})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what libraries may use


@pytest.fixture
def clip() -> CLIPModel:
    return CLIPModel(tiny_clip_config()).eval()


@pytest.fixture
def clip_folder(clip, tmp_path) -> Path:
    folder = tmp_path / "clip"
    clip.save_pretrained(folder)
    return folder


@pytest.fixture
def model() -> ViP2ClipForAnomalyDetection:
    return ViP2ClipForAnomalyDetection(tiny_config()).eval()


@pytest.fixture
def image_processor() -> ViP2ClipImageProcessor:
    return ViP2ClipImageProcessor(size=TINY["image_size"])


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 3, 48, 48)


@pytest.fixture
def batch(pixel_values) -> dict[str, torch.Tensor]:
    """One normal image and two anomalous ones, the last without a mask."""
    masks = torch.zeros(3, 48, 48, dtype=torch.uint8)
    masks[1, 10:20, 5:30] = 1
    return {
        "pixel_values": pixel_values,
        "labels": torch.tensor([0, 1, 1]),
        "mask_labels": masks,
        "mask_label_valid": torch.tensor([True, True, False]),
    }


@pytest.fixture
def photo() -> Image.Image:
    """A colourful picture that is not square, 60 wide and 40 high."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC)


def change_weights(model: torch.nn.Module, seed: int = 1):
    """Move every weight, so that one that is silently initialised again shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module):
    one, two = first.state_dict(), second.state_dict()
    assert set(one) == set(two)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def put_in_hub_cache(folder: Path, repo_id: str, cache_dir: Path, commit: str = "a" * 40) -> str:
    """Lay a folder out as if it had been downloaded from the Hub."""
    repository = cache_dir / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    return commit


# Reference numbers of the authors' code, see fixtures/oracle_release/README.md.

RELEASE_LAYERS = (1, 3, 4, 6)


@pytest.fixture(scope="session")
def release_clip() -> CLIPModel:
    folder = FIXTURES / "oracle_release"
    config = CLIPConfig.from_dict(json.loads((folder / "clip_config.json").read_text()))
    weights = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(folder / "clip.safetensors").items()
    }
    ids, rows = weights.pop("token_ids"), weights.pop("token_rows")
    table = torch.zeros(config.text_config.vocab_size, config.text_config.hidden_size)
    table[ids] = rows
    weights["text_model.embeddings.token_embedding.weight"] = table
    model = CLIPModel(config).eval()
    model.load_state_dict(weights)
    return model


@pytest.fixture
def release_model(release_clip) -> ViP2ClipForAnomalyDetection:
    return convert_release_checkpoint(
        FIXTURES / "oracle_release" / "release_checkpoint.pth",
        release_clip,
        image_size=98,
        feature_layers=RELEASE_LAYERS,
        top_k=5,
        smoothing_sigma=4,
    )
