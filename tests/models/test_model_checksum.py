"""The checksum that identifies a model in the folders of evaluations and predictions."""

import pytest
import torch
from accelerate import cpu_offload

from helpers.tiny import tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.models.loading import model_checksum


def changed(model, weight):
    with torch.no_grad():
        model.get_parameter(weight).add_(0.5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ViP2ClipForAnomalyDetection(tiny_config()).eval()


@pytest.mark.parametrize(
    "change",
    [
        # Both towers were missing: a folder returned the results of another backbone.
        lambda model: changed(model, "clip.vision_model.encoder.layers.0.mlp.fc1.weight"),
        lambda model: changed(model, "clip.text_model.encoder.layers.0.mlp.fc1.weight"),
        lambda model: changed(model, "clip.visual_projection.weight"),
        lambda model: changed(model, "prompt_learner.object_tokens"),
        lambda model: setattr(model.config, "top_k", 2),
        lambda model: setattr(model.config, "smoothing_sigma", 1.0),
        # A single value, or the way CLIP computes.
        lambda model: model.clip.vision_model.encoder.layers[0].mlp.fc1.weight.data.view(-1)[7].add_(1e-3),
        lambda model: setattr(model.config.clip_config.vision_config, "layer_norm_eps", 1e-3),
        lambda model: setattr(model.clip.vision_model, "post_layernorm", torch.nn.Identity()),
        lambda model: model.to(torch.bfloat16),
    ],
)
def test_what_changes_scores(model, change):
    before = model_checksum(model)
    change(model)
    assert model_checksum(model) != before


def test_what_does_not(model):
    before = model_checksum(model)
    model.config.local_loss_weight = 2.0
    model.decision.image_threshold = 0.9
    model.config.id2label = {0: "ok", 1: "nok"}
    model.provenance.training_sets.append({"name": "mine"})
    assert model_checksum(model) == before


def test_an_offloaded_model_cannot_be_identified(model):
    cpu_offload(model)
    with pytest.raises(RuntimeError, match=r"Weights of the model are offloaded .*; expected a model that is loaded"):
        model_checksum(model)
