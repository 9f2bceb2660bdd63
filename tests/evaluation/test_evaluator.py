import math
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.reference_metrics import exact_aupro, exact_metrics
from helpers.tiny import TINY
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.metrics import METRICS
from vip2clip_hf.evaluation.model_evaluation import evaluate_model


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)


@pytest.fixture
def model(clip):
    return ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)


def test_equals_scikit_learn_on_all_pixels(root, model, image_processor):
    result = evaluate_model(model.train(), image_processor, load_folder(root), batch_size=3)
    assert model.training  # not changed
    assert list(result["categories"]) == ["stripes", "weave"]
    for category, found in result["categories"].items():
        scores, maps, labels, masks = [], [], [], []
        model.eval()
        for row in load_folder(root, categories=[category]):
            inputs = image_processor(row["image"], segmentation_maps=[row["mask"]], return_tensors="pt")
            masks.append(inputs.pop("mask_labels").numpy()[0].astype(bool))
            with torch.no_grad():
                output = model(**inputs)
            scores.append(output.scores.item())
            maps.append(output.anomaly_maps.numpy()[0])
            labels.append(row["label"])
        for name, value in exact_metrics(np.array(labels), np.array(scores)).items():
            assert found[f"image_{name}"] == pytest.approx(value, abs=1e-6)
        for name, value in exact_metrics(np.array(masks), np.array(maps)).items():
            assert found[f"pixel_{name}"] == pytest.approx(value, abs=1e-4)
        assert found["pixel_aupro"] == pytest.approx(exact_aupro(np.array(maps), np.array(masks)), abs=1e-4)
        assert (found["num_images"], found["num_anomalous_images"], found["num_maps"]) == (7, 4, 7)
    for metric in METRICS:
        expected = np.mean([found[metric] for found in result["categories"].values()])
        assert result["mean"][metric] == pytest.approx(expected)


def test_undefined_is_nan(root, model, image_processor):
    dataset = load_folder(root)
    normal_only = dataset.select([i for i, label in enumerate(dataset["label"]) if label == 0])
    mean = evaluate_model(model, image_processor, normal_only)["mean"]
    assert all(math.isnan(mean[metric]) for metric in METRICS)
    assert "no anomalous images (stripes, weave)" in mean["undefined"]["image_auroc"]


def test_without_masks_only_image_metrics(root, model, image_processor):
    for path in root.rglob("*_mask.png"):
        path.unlink()
    mean = evaluate_model(model, image_processor, load_folder(root))["mean"]
    assert 0 <= mean["image_auroc"] <= 1
    assert mean["undefined"]["pixel_auroc"] == "no image has a mask (stripes, weave)"


def test_invalid_datasets(root, model, image_processor):
    dataset = load_folder(root)
    with pytest.raises(ValueError, match="contains no images"):
        evaluate_model(model, image_processor, dataset.select([]))
    flat = load_folder(root / "weave" / "test" / "good")
    with pytest.raises(ValueError, match="3 of 3 images have no label"):
        evaluate_model(model, image_processor, flat)
    broken = Path(root, dataset["image_id"][-1])
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(OSError, match="truncated or damaged"):
        evaluate_model(model.train(), image_processor, dataset)
    assert model.training
