import os


os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
# Several threads slow down tiny models, especially if several tests run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

from helpers.tiny import FIXTURES, RELEASE_LAYERS, TINY, tiny_clip_config, tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.models.vip2clip.convert_vip2clip_to_hf import convert_release_checkpoint


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Escape bytes of file names that are not UTF-8, which pytest-xdist cannot send to the main process."""
    report = (yield).get_result()
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]


@pytest.fixture(autouse=True, scope="module")
def _imported_modules_are_not_garbage():
    """
    Leave the objects of imported modules out of garbage collection.

    There are millions of them, and accelerate collects garbage in each training: otherwise a quarter of its time here.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries may use the global state


@pytest.fixture(autouse=True)
def _warn_again():
    """Warnings that are given once do not depend on the tests before."""
    logging.warning_once.cache_clear()


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
        "mask_valid": torch.tensor([True, True, False]),
    }


@pytest.fixture
def photo() -> Image.Image:
    """A colourful image that is not square: 60 pixels wide and 40 high."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC)


# Reference values from the authors' code, see fixtures/oracle_release/README.md.


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
