"""Tiny models, and helpers that many tests share."""

from pathlib import Path

import torch
from transformers import CLIPConfig

from vip2clip_hf import ViP2ClipConfig


ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
EXAMPLES = ROOT / "src" / "vip2clip_hf" / "examples"
RELEASE_LAYERS = (1, 3, 4, 6)
TINY = {"image_size": 48, "feature_layers": (1, 2, 4), "top_k": 5, "smoothing_sigma": 2.0, "meta_net_hidden_size": 6}


def tiny_clip_config(**overrides) -> CLIPConfig:
    """Two text and four vision blocks, patch 8, native grid 4 x 4, joint space of 16 dimensions."""
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
    vision.update(image_size=32, patch_size=8)
    return CLIPConfig(text_config=text, vision_config=vision, **{"projection_dim": 16, **overrides})


def tiny_config(variant: str = "paper", **overrides) -> ViP2ClipConfig:
    return ViP2ClipConfig.from_variant(variant, **{"clip_config": tiny_clip_config(), **TINY, **overrides})


def change_weights(model: torch.nn.Module, seed: int = 1):
    """Change every weight, to detect weights that are initialized again by mistake."""
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
    """Copy a folder into the cache of the Hub, as if it had been downloaded. Returns the commit."""
    repository = cache_dir / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    return commit
