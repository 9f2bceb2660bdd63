"""Exported models for tests."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny import TINY, change_weights, tiny_config
from vip2clip_hf import DecisionConfig, ReferenceBank, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.export.report import describe_export
from vip2clip_hf.models.vip2clip.fingerprint_vip2clip import model_fingerprint
from vip2clip_hf.models.vip2clip.pipeline_steps_vip2clip import score_settings


def build() -> ViP2ClipForAnomalyDetection:
    """
    Random weights, of which scores and maps depend on the photo as much as those of trained weights.

    With small weights of the cross-attention, both prompts attend to all patches equally and become nearly the same.
    Then patches differ by little more than rounding errors, and these choose the top-k patches.
    """
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection._from_config(tiny_config(), attn_implementation="sdpa").eval()
    change_weights(model)
    with torch.no_grad():
        attention = model.fine_grained_perception
        for layer, factor in (("q_proj", 10), ("k_proj", 10), ("v_proj", 3), ("out_proj", 3)):
            getattr(attention, layer).weight.mul_(factor)
    return model


def calibrated(model, decision: DecisionConfig, bank: ReferenceBank | None = None) -> DecisionConfig:
    """Add a calibration that belongs to the scores of the model."""
    scores = np.sort(np.random.default_rng(0).uniform(0, 1, 1500)).astype(np.float32)
    options = {"references": bank, "tile_size": decision.tile_size, "tile_overlap": decision.tile_overlap}
    settings = score_settings(model, options)
    decision.calibration = {"num_images": 1500, "settings": settings, "fingerprint": model_fingerprint(model)}
    decision.image_scores = scores
    decision.check_values()
    return decision


def export_by_hand(folder: Path) -> Path:
    """Write files like those of an export, with a graph that is quick to create: the map is the mean of channels."""
    onnx = pytest.importorskip("onnx", reason="extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="extra `runtime` is not installed")
    size = TINY["image_size"]
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    axes = [helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]),
            helper.make_tensor("all", onnx.TensorProto.INT64, [2], [1, 2])]  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "one"], ["mean"], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["anomaly_maps"]),
        helper.make_node("ReduceMax", ["anomaly_maps", "all"], ["scores"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("pixel_values", float32, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("scores", float32, ["batch"]),
         helper.make_tensor_value_info("anomaly_maps", float32, ["batch", size, size])],
        axes,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    model = build()
    model.decision = calibrated(model, DecisionConfig(0.6, 0.55, min_region_area=0.01))
    report = describe_export(model, "onnx", {}, {}, 1e-4, score_settings(model, {}))
    (folder / "export.json").write_text(json.dumps(report))
    model.decision.save_pretrained(folder)
    ViP2ClipImageProcessor(size=size).save_pretrained(folder)
    return folder
