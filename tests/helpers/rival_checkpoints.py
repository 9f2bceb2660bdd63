"""Tiny checkpoints of all methods on one backbone, at its native size: their vision towers compute the same."""

from pathlib import Path

import torch
from transformers import set_seed

from helpers.rivals import clip_tokenizer, tiny_text_clip
from helpers.tiny import change_weights
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, save_checkpoint
from vip2clip_hf.baselines.methods import METHODS


SIZE = 32
SETTINGS = {
    "april-gan": {"image_size": SIZE, "feature_layers": (1, 3)},
    "anomalyclip": {
        "image_size": SIZE, "dpam_layers": 2, "prompt_depth": 2, "num_context_tokens": 3, "deep_prompt_length": 2,
        "feature_layers": (1, 3), "smoothing_sigma": 1.0,
    },
    "adaclip": {
        "image_size": SIZE, "feature_layers": (1, 3), "prompting_depth": 2, "prompting_length": 3, "k_clusters": 2,
    },
}  # fmt: skip
OWN = {"image_size": SIZE, "feature_layers": (1, 2), "top_k": 3, "smoothing_sigma": 1.0, "meta_net_hidden_size": 6}


def write_rivals(folder: Path) -> dict[str, str]:
    """Write the backbone, `clip`, and a checkpoint for each method that needs training. Returns the checkpoints."""
    set_seed(0)
    clip, tokenizer = tiny_text_clip(num_hidden_layers=3), clip_tokenizer()
    with torch.no_grad():  # so that methods see differences between photos
        clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    found = {}
    for key, settings in SETTINGS.items():
        model = METHODS[key].model_class.from_clip(clip, tokenizer, **settings)
        for name, part in model.named_children():
            if name != "clip":
                change_weights(part)
        model.save_pretrained(folder / key)
        found[key] = str(folder / key)
    own = ViP2ClipForAnomalyDetection.from_clip(clip, **OWN)
    for part in (own.prompt_learner, own.image_conditioned_adapter, own.fine_grained_perception):
        change_weights(part)
    with torch.no_grad():  # maps with a wide range: rounding does not change the order of pixels
        for parameter in (*own.prompt_learner.parameters(), *own.fine_grained_perception.parameters()):
            parameter.mul_(20)
    save_checkpoint(own, ViP2ClipImageProcessor(size=SIZE), folder / "vip2clip")
    return {**found, "vip2clip": str(folder / "vip2clip")}
