"""Run the common pipeline tests of transformers on the "anomaly-detection" pipeline."""

import tempfile
import unittest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import TINY, tiny_config
from helpers.upstream import import_pipeline_tests, write_tiny_models
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor


pytestmark = pytest.mark.slow

# The common tests read this folder when they are imported. It is deleted when the process ends.
TINY_MODELS = tempfile.TemporaryDirectory()
write_tiny_models(
    Path(TINY_MODELS.name),
    ViP2ClipForAnomalyDetection(tiny_config()),
    ViP2ClipImageProcessor(size=TINY["image_size"]),
)
common = import_pipeline_tests(Path(TINY_MODELS.name), ViP2ClipImageProcessor)
common.pipeline_test_mapping["anomaly-detection"] = {"test": f"{__name__}.AnomalyDetectionPipelineTests"}


class AnomalyDetectionPipelineTests:
    """Tests of the task, called by the common tests. Has the methods of transformers' tests of other tasks."""

    __test__ = False  # not collected on its own

    def get_test_pipeline(
        self, model, tokenizer=None, image_processor=None, feature_extractor=None, processor=None, dtype="float32"
    ):
        model = model.to(getattr(torch, dtype))
        detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, dtype=dtype)
        pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(TINY_MODELS.name, "photo.png"))
        examples = [
            Image.fromarray(pixels),
            Image.fromarray(pixels).rotate(90, expand=True),
            Image.fromarray(pixels[..., 0]),
            pixels,
            str(Path(TINY_MODELS.name, "photo.png")),
        ]
        assert detector.dtype == getattr(torch, dtype)
        return detector, examples

    def run_pipeline_test(self, pipe, examples):
        outputs = pipe(examples)
        sizes = [(50, 80), (80, 50), (50, 80), (50, 80), (50, 80)]
        assert [output["anomaly_map"].shape for output in outputs] == sizes
        for output in outputs:
            assert set(output) == {"score", "label", "anomaly_map", "mask"}
            assert isinstance(output["score"], float)
            assert 0 <= output["score"] <= 1
            assert output["label"] in ("normal", "anomalous")
            assert output["anomaly_map"].dtype == np.float32
            assert output["mask"].dtype == bool
        np.testing.assert_allclose(outputs[0]["anomaly_map"], outputs[3]["anomaly_map"], rtol=0, atol=1e-6)
        batched = pipe(examples, batch_size=2)
        for one, other in zip(batched, outputs, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=2e-3)


# Without the tests of other tasks, which would all be skipped.
OTHER_TASKS = {name: None for name in dir(common.PipelineTesterMixin) if name.startswith("test_")}
PipelineTesterMixin = type("PipelineTesterMixin", (common.PipelineTesterMixin,), OTHER_TASKS)


class ViP2ClipPipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"anomaly-detection": ViP2ClipForAnomalyDetection}

    def skipTest(self, reason):
        # The common tests skip a model that cannot be loaded.
        self.fail(reason)

    def test_pipeline_anomaly_detection(self):
        self.run_task_tests("anomaly-detection")

    def test_pipeline_anomaly_detection_fp16(self):
        self.run_task_tests("anomaly-detection", dtype="float16")

    def test_pipeline_anomaly_detection_bf16(self):
        self.run_task_tests("anomaly-detection", dtype="bfloat16")
